"""A picture as WD14's taggers want it, bit for bit as the A1111 extension gives it to them.

White behind what is transparent; white bars that make it a square of at least the model's side; shrunk by averaging
over areas (`cv2.INTER_AREA`). It is never enlarged: the extension's `INTER_CUBIC` is for squares smaller than the
model, and its squares never are. kohya's tagger and taggui use other resizers (Lanczos, Pillow's bicubic).

Shape suffixes: H height, W width, C channels (blue, green, red), S sources of one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

SLIVER = 1e-3
"""cv2 leaves out a source pixel that a row's area touches by less than this share of it."""


def prepared(image: Image, side: int) -> npt.NDArray[np.float32]:
    """An RGB picture without transparency as (1, `side`, `side`, 3) blue, green, red in 0..255."""
    bgr_HWC = np.asarray(image)[:, :, ::-1]
    return shrunk(squared(bgr_HWC, side), side).astype(np.float32)[np.newaxis]


def squared(x_HWC: npt.NDArray[np.uint8], least: int) -> npt.NDArray[np.uint8]:
    """The picture in the middle of a white square of its longer side, or of `least` pixels if that is more."""
    height, width = x_HWC.shape[:2]
    side = max(height, width, least)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + height, left : left + width] = x_HWC
    return square


def shrunk(x_HWC: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """A square picture at `side` pixels, each of them the mean of the area that it covers, rounded as cv2 does it.

    cv2 rounds halves to the even neighbour, but upwards when the side is exactly halved, for which it has code of its
    own. Between other sides it computes in 32 bits, so one level of 255 may differ now and then.
    """
    before = len(x_HWC)
    if before == side:
        return x_HWC
    rows_HWC = averaged(x_HWC, side)
    mean_HWC = averaged(rows_HWC.transpose(1, 0, 2), side).transpose(1, 0, 2)
    rounded = np.floor(mean_HWC + 0.5) if before == 2 * side else np.rint(mean_HWC)
    return rounded.astype(np.uint8)


def averaged(x_HWC: npt.NDArray[np.uint8] | npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """`count` rows, each the mean of an equal share of the rows of `x_HWC`.

    Row by row, so that a large picture needs no copy of itself in floats, and in a fixed order of additions.
    """
    scale = len(x_HWC) / count
    made = np.empty((count, *x_HWC.shape[1:]), np.float64)
    for row in range(count):
        low, high = row * scale, min((row + 1) * scale, len(x_HWC))
        first, last = int(np.floor(low)), int(np.ceil(high))
        index_S = np.arange(first, last)
        share_S = np.minimum(index_S + 1, high) - np.maximum(index_S, low)
        share_S[share_S < SLIVER] = 0
        made[row] = (x_HWC[first:last] * (share_S / scale)[:, np.newaxis, np.newaxis]).sum(axis=0)
    return made
