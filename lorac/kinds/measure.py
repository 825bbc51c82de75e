"""What is measured in pictures, whoever drew them: what the tagger sees, and features of their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.kinds.image import from_ppm
from lorac.kinds.tag import loaded

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "measure"
VERSION = 1
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("seen", "features")


def run(work: Work) -> Iterable[Made | Failed]:
    """An item is a `picture`: the pixels of a training picture, or a sheet of `count` pictures side by side.

    `seen`: the probabilities of all tags as `tagger.vocabulary` stores them, picture after picture; `features`: a row
    of `evaluate.features` for each. A picture is looked at alone, so its numbers depend on nothing beside it.
    """
    from lorac.evaluate.features import features

    tagger = loaded(work)
    for item in work.items:
        pictures = pictures_of(work.read(item.inputs["picture"]), work.params["count"])
        seen = b"".join(tagger.probabilities(picture) for picture in pictures)
        yield Made(item.index, {"seen": seen, "features": b"".join(map(features, pictures))})


def pictures_of(data: bytes, count: int) -> list[Image]:
    """The pictures of a sheet, or the one of a PPM."""
    from lorac.sheet import parted

    return [from_ppm(data)] if data.startswith(b"P6") else parted(data, count)
