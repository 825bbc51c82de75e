"""Shrinking a picture by averaging over areas, as `cv2.INTER_AREA` does it: kohya's way, and that of WD14's taggers.

Shape suffixes: H height, W width, C channels, S sources of one row, R values of one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

SLIVER = 1000
"""cv2 leaves out a source pixel of which a row's area covers less than one in so many."""


def shrunk(x_HWC: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """A picture of fewer or as many columns and rows, each pixel the mean of the area that it covers.

    A source pixel counts by the part of it that is covered. `x_HWC` may be without channels, (H, W). Halves are rounded
    as cv2 does it: to the even neighbour, but upwards when both sides are exactly halved, for which it has code of its
    own. Between sides of no whole ratio cv2 computes in 32 bits, so one level of 255 may differ now and then.
    """
    before = x_HWC.shape[:2]
    if before == (height, width):
        return x_HWC
    rows_HWC = _sums(x_HWC, height)
    sums_HWC = _sums(rows_HWC.swapaxes(0, 1), width).swapaxes(0, 1)
    mean_HWC = sums_HWC / (before[0] * before[1])
    halved = before == (2 * height, 2 * width)
    rounded_HWC: npt.NDArray[np.float64] = np.floor(mean_HWC + 0.5) if halved else np.rint(mean_HWC)
    return rounded_HWC.astype(np.uint8)


def _sums(x_HWC: npt.NDArray[np.uint8] | npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """`count` rows: the means of equal shares of the rows of `x_HWC`, times their number H.

    Each of the H rows counts as `count` parts, and each new row takes H parts. So all numbers are whole, and as they
    are below 2⁵³, sums are exact in any order. Row by row, so that a large picture needs no copy of itself in floats.
    """
    rows = len(x_HWC)
    made = np.empty((count, *x_HWC.shape[1:]), np.float64)
    for row in range(count):
        low, high = row * rows, (row + 1) * rows
        first, last = low // count, -(-high // count)
        index_S = np.arange(first, last, dtype=np.int64) * count
        parts_S = np.minimum(index_S + count, high) - np.maximum(index_S, low)
        parts_S[parts_S * SLIVER < count] = 0
        sources_SR = x_HWC[first:last].reshape(last - first, -1)
        made[row] = (parts_S.astype(np.float64) @ sources_SR).reshape(made.shape[1:])
    return made
