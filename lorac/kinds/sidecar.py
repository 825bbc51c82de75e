"""What web UIs show beside a LoRA: `NAME.json` with the trigger words and a strength, `NAME.png` with a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

NAME = "sidecar"
VERSION = 1
SHAPE = Shape.ONE
POOL = "cpu"
OUTPUTS = ("json", "preview")


def run(work: Work) -> Iterable[Made | Failed]:
    """`preview` is the first picture of the first prompt at the strength that web UIs insert, or nothing.

    Ports: `facts` of the export; `off` and `first`, what was drawn first without the LoRA and with it, if prompts were
    drawn: of the column, the first `strengths` belong to the first prompt; `figures`, if the LoRA was evaluated.
    """
    from lorac.export import sidecar

    params = work.params
    weight = _weight(work)
    output = params["output"]
    made = sidecar(work.read(work.shared["facts"]), weight, output["negative"], output["notes"])
    preview = b""
    if "off" in work.shared:
        at = nearest(weight, [0.0, *params["strengths"]])
        preview = work.read([work.shared["off"], *work.columns.get("first", ())][at])
    yield Made(0, {"json": made, "preview": preview})


def _weight(work: Work) -> float | None:
    """The strength that web UIs insert: the recipe's, or else the evaluation's; None leaves it to them."""
    from lorac.evaluate.figures import decode

    wanted: float | None = work.params["output"]["preferred_weight"]
    if wanted is None and "figures" in work.shared:
        return decode(work.read(work.shared["figures"])).preferred_weight
    return wanted


def nearest(wanted: float | None, strengths: Sequence[float]) -> int:
    """The place of the strength that is nearest to `wanted`, of two the larger; without a wish, that of the largest."""
    if wanted is None:
        return strengths.index(max(strengths))
    return min(range(len(strengths)), key=lambda i: (abs(strengths[i] - wanted), -strengths[i]))
