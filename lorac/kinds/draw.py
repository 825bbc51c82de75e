"""Pictures of the sample prompts, always from the same noise: without the LoRA, or with it at a strength."""

from __future__ import annotations

from collections.abc import Iterable

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

NAME = "draw"
VERSION = 1
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("sheet", "first")


def run(work: Work) -> Iterable[Made | Failed]:
    """An item has a prompt, a negative prompt and, if the node has a LoRA, its strength.

    `sheet` is a PNG of `count` pictures by their numbers from left to right, `first` a PNG of the first of them.
    """
    from lorac.sheet import joined, png
    from lorac.studio import Settings, Studio

    params = work.params
    count: int = params["count"]
    settings = Settings(
        **params["sample"], **{name: params[name] for name in ("width", "height", "clip_skip", "prediction")}
    )
    studio = Studio(work, lora=work.shared.get("lora"))
    for done, item in enumerate(work.items, start=1):
        what = item.params
        pictures = studio.draw(what["prompt"], what["negative"], settings, range(count), what.get("strength", 0.0))
        yield Made(item.index, {"sheet": joined(pictures), "first": png(pictures[0])})
        work.progress(done * count, len(work.items) * count, "pictures")
