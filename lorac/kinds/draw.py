"""Pictures of the sample prompts, always from the same noise: without the LoRA, or with it at a strength."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.graph.nodes import Shape

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "draw"
VERSION = 3
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("sheet", "first")


def run(work: Work) -> Iterable[Made | Failed]:
    """An item has a prompt, a negative prompt and, if the node has a LoRA, its strength.

    `sheet` is a PNG of `count` pictures by their numbers from left to right, `first` a PNG of the first of them.
    """
    from lorac.sheet import joined, png
    from lorac.studio import Settings, Studio

    count: int = work.params["count"]
    settings = Settings.of(work.params, work.params["sample"])
    studio = Studio(work, lora=work.shared.get("lora"))
    done = 0
    for strength, items in _by_strength(work.items):
        sheets: list[list[Image]] = [[] for _ in items]
        texts = [_texts(item.params) for item in items]
        for at, _, picture in studio.stream_all(texts, settings, range(count), strength):
            sheets[at].append(picture)
            done += 1
            work.progress(done, len(work.items) * count, "pictures")
            if len(sheets[at]) == count:
                yield Made(items[at].index, {"sheet": joined(sheets[at]), "first": png(sheets[at][0])})


def _by_strength(items: Iterable[Item]) -> Iterable[tuple[float, list[Item]]]:
    """All prompts of a strength are drawn side by side; between two strengths the base's weights change."""
    groups: dict[float, list[Item]] = {}
    for item in items:
        params: Mapping[str, Any] = item.params
        groups.setdefault(params.get("strength", 0.0), []).append(item)
    return groups.items()


def _texts(params: Mapping[str, Any]) -> tuple[str, str]:
    return params["prompt"], params["negative"]
