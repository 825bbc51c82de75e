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
    """`image`, which is RGB, at most `side` (LARGE or SMALL) pixels wide and high.

    Equal pictures give equal bytes with one version of Pillow.
    """
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY[side], method=4)
    return buffer.getvalue()
