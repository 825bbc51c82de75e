"""What the page shows, as plain data. Names only: neither times nor absolute paths belong into a reproducible page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorac.evaluate.figures import Figures


@dataclass(frozen=True)
class Folder:
    """One picture set of the recipe: `count` pictures, each shown `repeats` times an epoch."""

    name: str
    repeats: int
    regularisation: bool
    count: int


@dataclass(frozen=True)
class Picture:
    """One picture that was trained on, with the caption as it was trained.

    `folder` is the name of its Folder, `tags` are those that some showing of the caption has, `width` and `height` are
    its pixels in training, `image` is a thumbnail. Those behind the first `pictures.MOST_PICTURES` of a folder are only
    counted, and need no thumbnail.
    """

    folder: str
    name: str
    caption: str
    tags: Sequence[str]
    width: int
    height: int
    image: bytes
    regularisation: bool = False


@dataclass(frozen=True)
class LeftOut:
    """A tag that stands in the texts of `count` training pictures and not in their final captions.

    `replaced` is what a rule put in its place, "" where it was excluded.
    """

    tag: str
    count: int
    replaced: str = ""


@dataclass(frozen=True)
class Row:
    """One sample prompt. `firsts`: a picture for each strength. `sheets`: at each strength, all pictures, small."""

    prompt: str
    negative: str
    firsts: Sequence[bytes]
    sheets: Sequence[Sequence[bytes]] = ()


@dataclass(frozen=True)
class Table:
    """One table of the recipe as the build used it: "[train]", "[[source]]". `defaults`: keys that have their default.

    Values are those of JSON; what is None is left out.
    """

    header: str
    values: Mapping[str, Any]
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outline:
    """The build graph by kinds: what each kind reads, and the number of items of each, where it is known."""

    reads: Mapping[str, Sequence[str]]
    items: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    recipe: the recipe's tables, as the build used them.
    left_out: the tags that the caption rules left out, the most frequent first.
    strengths: of the pictures of each row, in order; 0 means that the LoRA is off.
    losses, unet_lr, text_lr: one value for each optimiser step; the rate of a part that was not trained is empty.
    epoch_ends: steps, counted from 1, after which a file was saved.
    regularisation_steps: for each step whether it showed a regularisation picture; empty where steps mix both.
    validation: for each saved file the mean loss over held-out pictures, as `lora`, and that without it, as `base`.
    summary: the key figures, in the order of the page.
    """

    name: str
    recipe_file: str
    comment: str = ""
    recipe: Sequence[Table] = ()
    folders: Sequence[Folder] = ()
    pictures: Sequence[Picture] = ()
    left_out: Sequence[LeftOut] = ()
    rows: Sequence[Row] = ()
    strengths: Sequence[float] = ()
    figures: Figures | None = None
    losses: Sequence[float] = ()
    unet_lr: Sequence[float] = ()
    text_lr: Sequence[float] = ()
    epoch_ends: Sequence[int] = ()
    regularisation_steps: Sequence[bool] = ()
    validation: Sequence[Mapping[str, float]] = ()
    outline: Outline | None = None
    summary: Mapping[str, int | float] = field(default_factory=dict)
