"""A recipe that has been checked: what the rest of the compiler reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lorac.recipe.places import Place
from lorac.recipe.positions import KeyPath, parse_dotted
from lorac.recipe.schema import Caption, Network, Output, Sample, Train


@dataclass(frozen=True)
class PictureSet:
    """One folder or glob of pictures; a kohya training folder has become one set for each of its sub-folders.

    `path` is absolute and may end in a glob (see `lorac.listing.pictures`); `where` is the recipe's line.
    """

    path: str
    repeats: int
    alpha: str | None
    where: str
    trigger: tuple[str, ...] = ()
    caption: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One LoRA to build. Paths are absolute, `extends`, `--set` and the matrix are applied, defaults filled in.

    A key that follows from the base (resolution, bucket sizes, clip_skip) stays None when the recipe leaves it open.
    """

    name: str
    file: Path
    sources: tuple[PictureSet, ...]
    regularisation: tuple[PictureSet, ...]
    caption: Caption
    network: Network
    train: Train
    sample: Sample
    output: Output
    point: tuple[tuple[str, Any], ...] = ()
    root: Place = field(repr=False, compare=False, default=Place("", None, Path()))
    places: Mapping[KeyPath, Place] = field(repr=False, compare=False, default_factory=dict)

    def where(self, key: str) -> str:
        """The place of a dotted key, as messages show it: `where("train.seed")` is `recipes/x.toml:12`.

        A key that the recipe leaves out has the place of its section, or else of the file.
        """
        path = parse_dotted(key)
        while path and path not in self.places:
            path = path[:-1]
        return str(self.places[path] if path else self.root)

    def effective(self) -> dict[str, Any]:
        """All settings as plain values, for `lorac plan` and `build.json`; keys as in the recipe."""
        return {
            "source": [{"path": s.path, "repeats": s.repeats, "trigger": s.trigger, "alpha": s.alpha} for s in self.sources],
            "regularisation": [
                {"path": s.path, "repeats": s.repeats, "caption": s.caption, "alpha": s.alpha} for s in self.regularisation
            ],
            **{
                section: msgspec.to_builtins(getattr(self, section))
                for section in ("caption", "network", "train", "sample", "output")
            },
        }
