"""Several recipes side by side on one page.

Whatever a recipe has not (no prompts, no evaluation, a training that failed) is missing on the page, not an error: of
the ports of recipe number i (`losses.i`, `first.i`, `off.i`, `figures.i`) each may be absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

if TYPE_CHECKING:
    from lorac.report.column import Column, Shown

NAME = "compare"
VERSION = 3
SHAPE = Shape.ONE
POOL = "cpu"
OUTPUTS = ("html",)


def run(work: Work) -> Iterable[Made | Failed]:
    """The page. Params and ports:

    params.title and, perhaps, params.comment: of the page. params.recipes: for each recipe its `name`, `comment`,
    `settings`, `folders` and `sets` as the kind report gets them, `prompts` ([{prompt, negative}]) and `strengths`
    (those of `draw`: without 0; in its order).
    losses.i: the column `train.losses`. first.i: the column `draw.first`, prompts by strengths. off.i: the column
    `draw[off].first`, one for each prompt. figures.i: `evaluate.figures`.
    """
    from lorac.report.compare import compare_page

    params = work.params
    columns = [_column(work, number, about) for number, about in enumerate(params["recipes"])]
    yield Made(0, {"html": compare_page(params["title"], params.get("comment", ""), columns)})


def _column(work: Work, number: int, about: Mapping[str, Any]) -> Column:
    from lorac.evaluate.figures import decode
    from lorac.kinds.report import losses
    from lorac.report.column import Column
    from lorac.report.differences import flattened

    port = f"figures.{number}"
    return Column(
        name=about["name"],
        comment=about["comment"],
        settings=dict(flattened(about["settings"], about["folders"], about["sets"])),
        prompts=list(_prompts(work, number, about)),
        losses=[loss for part in work.columns.get(f"losses.{number}", ()) for loss in losses(work.read(part))],
        figures=decode(work.read(work.shared[port])) if port in work.shared else None,
    )


def _prompts(work: Work, number: int, about: Mapping[str, Any]) -> Iterator[Shown]:
    """The pictures of each prompt, as far as there are any."""
    from lorac.report.column import Shown
    from lorac.report.thumbnails import SMALL, webp
    from lorac.sheet import opened

    off, firsts = work.columns.get(f"off.{number}", ()), work.columns.get(f"first.{number}", ())
    strengths = about["strengths"] if firsts else ()
    for place, (prompt, without) in enumerate(zip(about["prompts"], off, strict=False)):
        own = firsts[place * len(strengths) : (place + 1) * len(strengths)]
        shown = {at: webp(opened(work.read(first)), SMALL) for at, first in zip(strengths, own, strict=True)}
        yield Shown(prompt["prompt"], prompt["negative"], webp(opened(work.read(without)), SMALL), shown)
