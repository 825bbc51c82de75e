"""Sheets: pictures of one size in a row, left to right, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def png(picture: Image) -> bytes:
    """A PNG without anything but the pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def joined(pictures: Sequence[Image]) -> bytes:
    """The sheet of some pictures, at least one, of one size."""
    from PIL import Image as images

    width, height = pictures[0].size
    sheet = images.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (width * number, 0))
    return png(sheet)


def parted(sheet: bytes, count: int) -> list[Image]:
    """The `count` pictures of a sheet."""
    whole = opened(sheet)
    width = whole.width // count
    return [whole.crop((width * number, 0, width * (number + 1), whole.height)) for number in range(count)]


def opened(data: bytes) -> Image:
    """The picture of a PNG, RGB."""
    from PIL import Image as images

    return images.open(io.BytesIO(data)).convert("RGB")
