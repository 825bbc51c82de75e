"""What the page shows, as plain data. Names only: neither times nor absolute paths belong into a reproducible page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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

    `folder` is the name of its Folder, `width` and `height` are its pixels in training, `png` is a thumbnail. Those
    behind the first `pictures.MOST_PICTURES` of a folder are only counted, and need no thumbnail.
    """

    folder: str
    name: str
    caption: str
    width: int
    height: int
    png: bytes
    regularisation: bool = False


@dataclass(frozen=True)
class Row:
    """One sample prompt. `png` is one strip: a picture for each strength, side by side, all of one size."""

    prompt: str
    negative: str
    png: bytes


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    settings: sections of the recipe by name, each key to value, as the build used them.
    strengths: of the columns of each row's strip, left to right; 0 means that the LoRA is off.
    losses, unet_lr, text_lr: one value for each optimiser step; the rate of a part that was not trained is empty.
    epoch_ends: steps, counted from 1, after which a file was saved.
    regularisation_steps: for each step whether it showed a regularisation picture; empty where steps mix both.
    validation: for each saved file the mean loss over held-out pictures, as `lora`, and that without it, as `base`.
    summary: the key figures, in the order of the page.
    """

    name: str
    recipe_file: str
    comment: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: Sequence[Folder] = ()
    pictures: Sequence[Picture] = ()
    rows: Sequence[Row] = ()
    strengths: Sequence[float] = ()
    losses: Sequence[float] = ()
    unet_lr: Sequence[float] = ()
    text_lr: Sequence[float] = ()
    epoch_ends: Sequence[int] = ()
    regularisation_steps: Sequence[bool] = ()
    validation: Sequence[Mapping[str, float]] = ()
    summary: Mapping[str, int | float] = field(default_factory=dict)
