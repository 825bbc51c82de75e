"""Means of areas: as cv2 makes them, and as they are defined."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lorac.area import shrunk

CV2 = {
    ((10, 10), (4, 4)): [[27, 91, 137, 145], [76, 148, 176, 162], [107, 160, 168, 115], [142, 132, 141, 96]],
    ((8, 8), (4, 4)): [[14, 57, 100, 143], [45, 156, 174, 127], [76, 162, 201, 193], [107, 103, 181, 113]],
    ((9, 9), (3, 3)): [[37, 127, 155], [109, 165, 136], [119, 146, 140]],
    ((16, 16), (4, 4)): [[68, 136, 137, 158], [112, 172, 120, 100], [153, 160, 180, 106], [134, 132, 130, 85]],
    ((7, 7), (5, 5)): [
        [7, 30, 56, 81, 104],
        [22, 73, 130, 187, 162],
        [39, 122, 171, 144, 188],
        [56, 170, 136, 201, 192],
        [71, 137, 172, 184, 200],
    ],
    ((10, 7), (4, 5)): [
        [16, 59, 106, 119],
        [43, 138, 177, 186],
        [72, 151, 163, 163],
        [102, 164, 196, 124],
        [101, 163, 177, 115],
    ],
    ((48, 33), (5, 3)): [[135, 125, 121, 126, 134], [122, 133, 131, 118, 139], [128, 124, 124, 135, 119]],
    ((5, 9), (5, 4)): [
        [5, 29, 53, 78, 102],
        [20, 82, 144, 165, 144],
        [36, 136, 173, 148, 186],
        [51, 189, 140, 80, 114],
    ],
    ((12, 8), (3, 4)): [[36, 122, 120], [101, 150, 154], [119, 196, 99], [105, 146, 141]],
    ((6, 6), (3, 4)): [[12, 49, 86], [32, 115, 198], [58, 166, 150], [79, 170, 199]],
    ((4, 6), (2, 6)): [[6, 32], [22, 82], [38, 132], [53, 181], [68, 137], [84, 186]],
}
"""The blue of `pattern` as opencv-python-headless 5.0.0 shrinks it with INTER_AREA, its other channels or alone.

{((width, height) before, after): rows}
"""


def pattern(width: int, height: int) -> npt.NDArray[np.uint8]:
    i, j, c = np.ogrid[:height, :width, :3]
    made: npt.NDArray[np.int64] = (i * 7 + j * 13 + c * 31 + (i * j) % 11 * 17) % 256
    return made.astype(np.uint8)


def covered(before: int, after: int) -> npt.NDArray[np.float64]:
    """(after, before): the part of each new pixel that an old one covers."""
    scale = before / after
    share = np.zeros((after, before))
    for new in range(after):
        for old in range(before):
            share[new, old] = max(0.0, min(old + 1, (new + 1) * scale) - max(old, new * scale)) / scale
    return share


def area_means(x_HWC: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.float64]:
    """The definition, in float64."""
    rows, columns = covered(x_HWC.shape[0], height), covered(x_HWC.shape[1], width)
    means: npt.NDArray[np.float64] = np.einsum("as,bt,st...->ab...", rows, columns, x_HWC.astype(np.float64))
    return means


@pytest.mark.parametrize("sizes", CV2)
def test_shrinking_is_cv2_s(sizes: Any) -> None:
    before, after = sizes
    assert shrunk(pattern(*before), *after)[:, :, 0].tolist() == CV2[sizes]
    assert shrunk(pattern(*before)[:, :, 0], *after).tolist() == CV2[sizes]


@pytest.mark.parametrize(
    ("before", "after"),
    [((31, 31), (7, 7)), ((50, 41), (48, 40)), ((96, 96), (32, 32)), ((33, 60), (32, 60)), ((40, 90), (40, 7))],
)
def test_shrinking_is_the_mean_of_areas(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = pattern(*before)
    assert np.abs(shrunk(x, *after) - area_means(x, *after)).max() <= 0.5 + 1e-9


def test_as_in_cv2_slivers_of_less_than_a_thousandth_do_not_count() -> None:
    """1003 to 1002: the first pixel takes 0.000998 of the second one, in both directions."""
    white = np.full((1003, 1003), 255, np.uint8)
    assert shrunk(white, 1002, 1002)[:2, :2].tolist() == [[254, 255], [255, 255]]


def test_halving_rounds_up_as_cv2_does() -> None:
    x = np.zeros((2, 2, 3), np.uint8)
    x[0, :] = 1
    assert shrunk(x, 1, 1).tolist() == [[[1, 1, 1]]]
    quarter = np.zeros((4, 4, 3), np.uint8)
    quarter[:2] = 1
    assert shrunk(quarter, 1, 1).tolist() == [[[0, 0, 0]]], "other halves go to the even neighbour"
    assert shrunk(x, 2, 1).tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_a_photograph_is_shrunk_without_a_copy_of_it_in_floats() -> None:
    x = np.zeros((1500, 2000, 3), np.uint8)
    tracemalloc.start()
    try:
        shrunk(x, 171, 128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * x.nbytes
