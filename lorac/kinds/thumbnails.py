"""Pictures made small for pages: lossy WebP, a tenth of a PNG's bytes for what a base draws, in every browser."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

LARGE, SMALL = 256, 128
"""Pixels of the longer side: pictures to look at, and those of a sheet, which are shown at half their size."""
_QUALITY = {LARGE: 90, SMALL: 80}


def webp(image: Image, side: int) -> bytes:
    """`image`, which is RGB, at most `side` (LARGE or SMALL) pixels wide and high. The same bytes from the same Pillow."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY[side], method=4)
    return buffer.getvalue()


def opened(data: bytes) -> Image:
    """The RGB picture in a PNG file."""
    from PIL import Image as images

    return images.open(io.BytesIO(data)).convert("RGB")


def cut(sheet: Image, count: int) -> list[Image]:
    """The pictures of a strip of `count`, from left to right."""
    width = sheet.width // count
    return [sheet.crop((number * width, 0, (number + 1) * width, sheet.height)) for number in range(count)]
