"""Pictures that the base draws of one prompt, or that show nothing: what stands where a folder's pictures stand.

An item is a number, and its picture a function of the settings, the base and the number: a larger `count` draws what
is new, and recipes with equal settings and an equal base share all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.kinds.source import NO_CAPTION

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "generate"
VERSION = 3
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("picture", "caption", "name")
"""As those of `source`: a PNG, no caption file, and the picture's name."""


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.sheet import png

    indices = {int(str(item.params["number"])): item.index for item in work.items}
    pictures = _transparent(work, list(indices)) if work.params.get("transparent") else _drawn(work, list(indices))
    for done, (number, picture) in enumerate(pictures, start=1):
        outputs = {"picture": png(picture), "caption": NO_CAPTION, "name": name(number).encode()}
        yield Made(indices[number], outputs)
        work.progress(done, len(indices), "pictures")


def name(number: int) -> str:
    """Of the picture with this number, which counts from 0; people count from 1."""
    return f"generated_{number + 1:04}"


def _drawn(work: Work, numbers: Sequence[int]) -> Iterator[tuple[int, Image]]:
    from lorac.studio import Settings, Studio

    studio = Studio(work, lora=None)
    yield from studio.stream(work.params["prompt"], work.params["negative"], Settings.of(work.params), numbers)


def _transparent(work: Work, numbers: Sequence[int]) -> Iterator[tuple[int, Image]]:
    from PIL import Image as images

    picture = images.new("RGBA", (work.params["width"], work.params["height"]), (0, 0, 0, 0))
    return ((number, picture) for number in numbers)
