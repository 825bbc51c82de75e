"""A recipe that has been checked: what the rest of the compiler reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from lorac.captions import Rules
from lorac.recipe.fields import BUILTIN_BASE, BUILTIN_TAGGER
from lorac.recipe.places import Place
from lorac.recipe.positions import KeyPath, parse_dotted
from lorac.recipe.schema import SECTIONS
from lorac.recipe.sections.data import Caption, Generate, Tagger
from lorac.recipe.sections.loss import Loss
from lorac.recipe.sections.network import Network
from lorac.recipe.sections.output import Check, Evaluate, Output, Prompt, Sample
from lorac.recipe.sections.train import Train, Validation


@dataclass(frozen=True)
class PictureSet:
    """One folder or glob of pictures; a kohya training folder has become one set for each of its sub-folders.

    `path` is absolute and may end in a glob (see `lorac.listing.pictures`); `where` is the recipe's line. `trigger`
    is empty for regularisation pictures, `caption` (for pictures without a text file) is None for sources. Pictures to
    `generate` are in no folder; their `path` is only a name. Pictures `held_out` are validated and never trained.
    """

    path: str
    repeats: int
    alpha: str | None
    where: str
    alpha_mask: bool = False
    trigger: tuple[str, ...] = ()
    caption: str | None = None
    regularisation: bool = False
    held_out: bool = False
    generate: Generate | None = None

    @property
    def fallback(self) -> str:
        """What stands for a text that is not there and that no tagger gives."""
        return self.caption or (self.generate.prompt if self.generate else "")

    @property
    def asks_tagger(self) -> bool:
        """Whether the recipe's tagger, if it has one, says what is in pictures without a text. In a transparent picture
        there is nothing to see."""
        return not self.caption and not (self.generate and self.generate.transparent)


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
    tagger: Tagger
    network: Network
    train: Train
    loss: Loss
    validation: Validation
    sample: Sample
    output: Output
    evaluate: Evaluate
    check: Check
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

    @property
    def folders(self) -> tuple[PictureSet, ...]:
        """Sources, then regularisation, then what is only validated."""
        return (*self.sources, *self.regularisation, *([self.held_out] if self.held_out else []))

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The sample prompts; loading leaves no plain strings."""
        return cast("tuple[Prompt, ...]", self.sample.prompts)

    @property
    def validation_seed(self) -> int:
        """The seed that chooses the held-out pictures and their noise: that of training unless given."""
        return self.train.seed if self.validation.seed is None else self.validation.seed

    @property
    def held_out(self) -> PictureSet | None:
        """The pictures of `validation.path`."""
        own = self.validation
        if own.path is None:
            return None
        shared = {source.trigger for source in self.sources}
        trigger = own.trigger if own.trigger is not None else next(iter(shared)) if len(shared) == 1 else ()
        return PictureSet(own.path, 1, own.alpha, self.where("validation.path"), trigger=trigger, held_out=True)

    @property
    def judge(self) -> str | None:
        """The tagger that evaluates; None where no evaluation is wanted, or no tagger knows what the base draws."""
        if not (self.evaluate.count and self.sample.prompts):
            return None
        embedded = BUILTIN_TAGGER if self.train.base == BUILTIN_BASE else None
        return self.evaluate.tagger or self.tagger.model or embedded

    def rules(self, pictures: PictureSet) -> Rules:
        """The caption rules of a picture set. Regularisation captions are trained as they are written."""
        own = self.caption
        if pictures.regularisation:
            return Rules(separator=own.keep_tokens_separator, wildcard=own.enable_wildcard)
        return Rules(
            trigger=pictures.trigger,
            exclude=self.caption.exclude,
            replace=tuple(sorted(self.caption.replace.items())),
            prefix=self.caption.prefix,
            suffix=self.caption.suffix,
            separator=own.keep_tokens_separator,
            wildcard=own.enable_wildcard,
        )

    def effective(self) -> dict[str, Any]:
        """All settings as plain values, for `lorac plan` and `build.json`; sections and keys as in the recipe."""
        sections = {name: getattr(self, name) for name in SECTIONS if name not in ("source", "regularisation")}
        return {
            "source": [_entry(pictures) for pictures in self.sources],
            "regularisation": [_entry(pictures) for pictures in self.regularisation],
            **{name: msgspec.to_builtins(section) for name, section in sections.items()},
        }


def _entry(pictures: PictureSet) -> dict[str, Any]:
    own = {"caption": pictures.caption} if pictures.regularisation else {"trigger": list(pictures.trigger)}
    generate = pictures.generate
    origin = {"path": pictures.path} if generate is None else {"generate": msgspec.to_builtins(generate)}
    return {**origin, "repeats": pictures.repeats, **own, "alpha": pictures.alpha}
