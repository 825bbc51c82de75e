"""A picture as WD14's taggers want it, bit for bit as the A1111 extension gives it to them.

White behind what is transparent; white bars that make it a square of at least the model's side; shrunk by averaging
over areas (`cv2.INTER_AREA`). It is never enlarged: the extension's `INTER_CUBIC` is for squares smaller than the
model, and its squares never are. kohya's tagger enlarges small pictures by Lanczos, taggui has Pillow's bicubic.

Shape suffixes: H height, W width, C channels (blue, green, red).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lorac.area import shrunk

if TYPE_CHECKING:
    from PIL.Image import Image


def prepared(image: Image, side: int) -> npt.NDArray[np.float32]:
    """An RGB picture without transparency as (1, `side`, `side`, 3) blue, green, red in 0..255."""
    bgr_HWC = np.asarray(image)[:, :, ::-1]
    return shrunk(squared(bgr_HWC, side), side, side).astype(np.float32)[np.newaxis]


def squared(x_HWC: npt.NDArray[np.uint8], least: int) -> npt.NDArray[np.uint8]:
    """The picture in the middle of a white square of its longer side, or of `least` pixels if that is more."""
    height, width = x_HWC.shape[:2]
    side = max(height, width, least)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + height, left : left + width] = x_HWC
    return square
