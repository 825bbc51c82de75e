"""Several recipes side by side on one page.

Whatever a recipe has not (no prompts, no evaluation, a training that failed) is missing on the page, not an error: of
the ports of recipe number i (`losses.i`, `first.i`, `off.i`, `figures.i`) each may be absent.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

if TYPE_CHECKING:
    from lorac.report.compare import Column, Shown

NAME = "compare"
VERSION = 1
SHAPE = Shape.ONE
POOL = "cpu"
OUTPUTS = ("html",)


def run(work: Work) -> Iterable[Made | Failed]:
    """The page. Params and ports:

    params.title: of the page. params.recipes: for each recipe its `name`, `comment`, `settings` and `folders` as the
    kind report gets them, `prompts` ([{prompt, negative}]) and `strengths` (those of `draw`: without 0; in its order).
    losses.i: the column `train.losses`. first.i: the column `draw.first`, prompts by strengths. off.i: the column
    `draw[off].first`, one for each prompt. figures.i: `evaluate.figures`.
    """
    yield Made(0, {"html": b""})
