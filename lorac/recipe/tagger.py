"""Where a recipe's tagger lies: a folder with the two files of SmilingWolf's taggers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from lorac.recipe.fields import BUILTIN_TAGGER
from lorac.recipe.sections.data import Tagger

MODEL = "model.onnx"
TAGS = "selected_tags.csv"


def tagger_folder(model: str) -> Path:
    """The folder that `[tagger] model` means; the embedded one lies in the package."""
    if model == BUILTIN_TAGGER:
        return Path(str(resources.files("lorac.mini") / "tagger"))
    return Path(model)


def thresholds(settings: Tagger) -> dict[str, float]:
    """Probabilities from which general tags and names of characters are taken."""
    character = settings.character_threshold
    return {"general": settings.threshold, "character": settings.threshold if character is None else character}
