"""Sheets of pictures as PNG: what is joined comes apart again, pixel by pixel."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lorac.rng import Stream
from lorac.sheet import joined, opened, parted, png


def pictures(count: int) -> list[Image.Image]:
    stream = Stream(1, "sheet test")
    return [Image.frombytes("RGB", (5, 3), bytes(stream.below(256) for _ in range(45))) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_sheet_comes_apart_as_it_was_joined(count: int) -> None:
    made = pictures(count)
    sheet = joined(made)
    with Image.open(io.BytesIO(sheet)) as whole:
        assert (whole.format, whole.mode, whole.size, whole.info) == ("PNG", "RGB", (5 * count, 3), {})
        for number, picture in enumerate(made):
            for x in range(5):
                assert [whole.getpixel((5 * number + x, y)) for y in range(3)] == [
                    picture.getpixel((x, y)) for y in range(3)
                ]
    assert [part.tobytes() for part in parted(sheet, count)] == [picture.tobytes() for picture in made]


def test_a_sheet_of_one_is_the_picture() -> None:
    (picture,) = pictures(1)
    assert joined([picture]) == png(picture)
    assert opened(png(picture)).tobytes() == picture.tobytes()
