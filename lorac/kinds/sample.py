"""Pictures of one prompt: the LoRA off and at each strength, from the same noise, side by side."""

from __future__ import annotations

from collections.abc import Iterable

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

NAME = "sample"
VERSION = 4
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("row", "preview")


def run(work: Work) -> Iterable[Made | Failed]:
    """`row` is a PNG of all strengths from left to right, `preview` one of them."""
    from lorac.studio import Settings, Studio, png, side_by_side

    studio, settings = Studio(work, lora=work.shared["lora"]), Settings.of(work.params, work.params["sample"])
    for done, item in enumerate(work.items):
        texts = str(item.params["prompt"]), str(item.params["negative"])
        pictures = [studio.draw(*texts, settings, [0], strength)[0] for strength in work.params["strengths"]]
        yield Made(item.index, {"row": png(side_by_side(pictures)), "preview": png(pictures[work.params["preview"]])})
        work.progress(done + 1, len(work.items), "prompts")
