"""The whole recipe: one definition for validation, defaults, lowering, metadata, JSON Schema and documentation."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lorac.recipe.fields import BUILTIN_BASE, BUILTIN_TAGGER, Section, Text, key
from lorac.recipe.sections.data import Caption, Regularisation, Source, Tagger
from lorac.recipe.sections.loss import Loss
from lorac.recipe.sections.network import Network
from lorac.recipe.sections.output import Check, Evaluate, Output, Sample
from lorac.recipe.sections.train import Train, Validation


class Document(Section, frozen=True):
    """A lorac recipe: pictures in, a Stable Diffusion 1.x LoRA out."""

    preset: Annotated[
        Literal["kohya-2023", "modern"] | None,
        key("Defaults as a whole: those of the article's trainer, or today's. Absent: kohya's own."),
    ] = None
    extends: Annotated[Text | None, key("Another recipe whose values hold where this one gives none.")] = None
    matrix: Annotated[
        dict[str, Any], key('One recipe for each combination: "network.alpha" = [1, 128].', wanted="a table of lists")
    ] = {}
    source: Annotated[tuple[Source, ...], key("Pictures to learn from.")] = ()
    regularisation: Annotated[tuple[Regularisation, ...], key("Ordinary pictures of the class.")] = ()
    caption: Caption = Caption()
    tagger: Tagger = Tagger()
    network: Network = Network()
    train: Train = Train()
    loss: Loss = Loss()
    validation: Validation = Validation()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    check: Check = Check()
    output: Output = Output()


SECTIONS: dict[str, type[Section]] = {
    "source": Source,
    "regularisation": Regularisation,
    "caption": Caption,
    "tagger": Tagger,
    "network": Network,
    "train": Train,
    "loss": Loss,
    "validation": Validation,
    "sample": Sample,
    "evaluate": Evaluate,
    "check": Check,
    "output": Output,
}

PATHS = (
    ("tagger", "model"),
    ("network", "weights"),
    ("train", "base"),
    ("train", "vae"),
    ("validation", "path"),
    ("evaluate", "tagger"),
)
"""(section, key) of the files and folders that are named outside of [[source]] and [[regularisation]]."""

GLOBS = (("validation", "path"),)
"""Those of them that may end in a glob."""

BUILTINS = {
    ("train", "base"): BUILTIN_BASE,
    ("tagger", "model"): BUILTIN_TAGGER,
    ("evaluate", "tagger"): BUILTIN_TAGGER,
}
"""What ships with lorac."""

# Giving one of a pair in a later layer (a child recipe, --set, the matrix) takes the other away.
EXCLUSIVE: dict[tuple[str | int, ...], tuple[str, str]] = {
    ("train", "epochs"): ("train", "steps"),
    ("train", "steps"): ("train", "epochs"),
}


def keys(section: type[Section]) -> dict[str, dict[str, Any]]:
    """What `key` says of each key of a section, by the key's name: description, kohya, nodes, metadata."""
    return {
        field.name: {"description": note.description, **(note.extra or {})}
        for field in msgspec.structs.fields(section)
        for note in getattr(field.type, "__metadata__", ())
        if isinstance(note, Meta) and note.extra and "nodes" in note.extra
    }


@cache  # the types' notes take a millisecond to read, and every node of every recipe asks
def read_by(node: str) -> tuple[tuple[str, str], ...]:
    """(section, key) of everything that a node kind reads as it stands in the recipe."""
    return tuple(
        (section, name)
        for section, kind in SECTIONS.items()
        for name, facts in keys(kind).items()
        if node in facts["nodes"]
    )
