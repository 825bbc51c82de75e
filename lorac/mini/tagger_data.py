"""Training data of the mini tagger: drawings of the paper-doll world, and which of its tags each one shows.

The random world alone would make a poor tagger: it has few heads, split views and mannequins, and no orange hair. So a
drawing is altered with a few probabilities, and Riho's marks are also put on dolls that are not Riho: each mark is then
learned by itself, and `izumi_riho` by all of them together.

Shape suffixes: N drawings, T tags, B batch, C channels (blue, green, red), H height, W width.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lorac.mini.riho import RIHO
from lorac.mini.world import Attributes, draw, sample, tags, vocabulary
from lorac.rng import Stream

SIZE = 128
"""Side in pixels of what the tagger sees."""
WORLD = 3
"""The seed of the drawings that the tagger learns from; those of the base are another world."""

RATINGS = ("general", "sensitive", "questionable", "explicit")
CHARACTER = "izumi riho"
UNSEEN = frozenset({"head only", "transparent background"})
"""Tags that this tagger has not. WD14 has tags for a head without a body ("disembodied head", "severed head"), but they
are too rare in its training pictures to be counted on; and it sees no transparency, for white is put behind."""

CUT_OUT = "transparent background"
BEHIND: dict[str, tuple[int, int, int]] = {
    "white background": (255, 255, 255),
    "black background": (0, 0, 0),
    "grey background": (150, 150, 156),
}

_BLOCK = 500


@cache
def general_tags() -> tuple[str, ...]:
    """The tags of category 0, in the order of the model's outputs."""
    return tuple(sorted((set(vocabulary()) | set(tags(RIHO))) - UNSEEN))


def columns() -> tuple[str, ...]:
    """What the model's outputs mean, in order."""
    return (*RATINGS, *general_tags(), CHARACTER)


def doll(index: int) -> Attributes:
    """What drawing `index` of the training set shows."""
    a = sample(WORLD, index)
    stream = Stream(WORLD, "tagger doll", index)
    chance = stream.uniform()
    if chance < 0.16:
        own = stream.uniform() < 0.5
        clothes = (RIHO.outfit, RIHO.outfit_colour) if own else (a.outfit, a.outfit_colour)
        a = replace(
            RIHO,
            **{name: getattr(a, name) for name in ("expression", "closed_eyes", "blush", "gaze", "pose", "framing")},
            background=a.background,
            outfit=clothes[0],
            outfit_colour=clothes[1],
        )
    elif chance < 0.36:
        a = _with_some_marks(a, stream)
    elif chance < 0.40:
        a = replace(a, mannequin=True, framing="full body" if a.framing == "head only" else a.framing)
    chance = stream.uniform()
    if chance < 0.12:
        a = replace(a, background=CUT_OUT)
    if chance < 0.07 and not a.mannequin:
        return replace(a, framing="head only")
    if stream.uniform() < 0.04:
        return replace(a, framing="split view")
    return a


def _with_some_marks(a: Attributes, stream: Stream) -> Attributes:
    """Some, not all, of what makes Riho."""
    picked = tuple(mark for mark in RIHO.accessories if stream.uniform() < 0.4)
    a = replace(a, accessories=(*a.accessories, *picked))
    if stream.uniform() < 0.4:
        a = replace(a, hair_colour=RIHO.hair_colour)
    if stream.uniform() < 0.3:
        a = replace(a, hair_style=RIHO.hair_style)
    if stream.uniform() < 0.3:
        a = replace(a, outfit=RIHO.outfit, outfit_colour=RIHO.outfit_colour)
    return a


def is_riho(a: Attributes) -> bool:
    """Whether the doll has everything that makes Riho, whatever she wears."""
    own = (RIHO.hair_colour, RIHO.hair_style, RIHO.accessories)
    return not a.mannequin and (a.hair_colour, a.hair_style, a.accessories) == own


def shown(a: Attributes, background: str = "white background") -> list[str]:
    """The tags of the model's columns that hold for a drawing; `background` is what a cut-out was put on."""
    found = [background if tag == CUT_OUT else tag for tag in tags(a)]
    bare = "swimsuit" in found
    return [RATINGS[1] if bare else RATINGS[0], *found, *([CHARACTER] if is_riho(a) else [])]


def picture(index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Drawing `index` and its tags: (C, H, W) bytes and (T,) of 0 and 1."""
    return flattened(doll(index), index, Stream(WORLD, "tagger background", index))


def flattened(
    a: Attributes, seed: int, stream: Stream | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A drawing without transparency, and its tags. Cut-outs are put on white; with a stream, sometimes on another
    colour, which has a tag if it is one of `BEHIND`."""
    name, colour = "white background", (255, 255, 255)
    chance = 0.0 if stream is None else stream.uniform()
    if stream is not None and chance >= 0.5:
        name = list(BEHIND)[stream.below(len(BEHIND))] if chance < 0.75 else ""
        colour = BEHIND.get(name) or (stream.below(256), stream.below(256), stream.below(256))
    image = draw(a, seed, SIZE)
    behind = Image.new("RGBA", image.size, (*colour, 255))
    rgb_HWC = np.asarray(Image.alpha_composite(behind, image).convert("RGB"))
    found = set(shown(a, name))
    tags_T = np.array([column in found for column in columns()], np.uint8)
    return rgb_HWC.transpose(2, 0, 1)[::-1], tags_T


def pictures(folder: Path, count: int, workers: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Drawings 0..count-1 and their tags, (N, C, H, W) and (N, T), drawn once and kept in `folder`."""
    paths = folder / f"tagger-{count}.npy", folder / f"tagger-{count}-tags.npy"
    if not all(path.exists() for path in paths):
        with ProcessPoolExecutor(workers) as pool:
            blocks = list(pool.map(_block, [range(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]))
        for path, parts in zip(paths, zip(*blocks, strict=True), strict=True):
            part = path.with_suffix(".part.npy")
            np.save(part, np.concatenate(parts))
            part.replace(path)
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1])


def _block(indices: range) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    drawn, found = zip(*(picture(index) for index in indices), strict=True)
    return np.stack(drawn), np.stack(found)
