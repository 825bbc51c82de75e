"""The losses of several recipes: a small chart for each, with all the others in grey behind it.

One chart with eleven lines cannot be read, least of all in print or by the colour-blind; this can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorac.report.chart import SIDE
from lorac.report.markup import number, text
from lorac.report.series import SMOOTHING, Point, mean, round_step, smoothed, thinned

_POINTS = 120
_BEYOND = 2.5
"""A curve that rises above so many times the median of all curves' highest points does not set the scale."""


def loss_section(losses: Sequence[tuple[str, Sequence[float]]]) -> str:
    """The section, or nothing without losses. Names are texts."""
    curves = [(name, _curve(values), values) for name, values in losses if len(values)]
    drawn = [curve for _, curve, _ in curves if curve]
    if not drawn:
        return ""
    top, last = _top(drawn), max(len(values) for _, _, values in curves)
    lines = "".join(
        f'<polyline id="loss{place}" vector-effect="non-scaling-stroke" points="{_corners(curve, top, last)}"/>'
        for place, (_, curve, _) in enumerate(curves)
        if curve
    )
    panels = "".join(
        _panel(place, name, values, [n for n, (_, curve, _) in enumerate(curves) if curve], top, last)
        for place, (name, _, values) in enumerate(curves)
    )
    return (
        '<section id="loss"><h2>Loss</h2>\n<p class="lead">Smoothed over a twentieth of each run; all panels have the '
        f"same scale, from 0 to {number(top)} and over {number(last)} steps. Grey: the other recipes.</p>\n"
        f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{lines}</defs></svg>\n'
        f'<div class="panels losses">\n{panels}</div></section>\n'
    )


def _curve(values: Sequence[float]) -> list[Point]:
    """The smoothed curve, without single losses that are no numbers."""
    points = [(float(step), value) for step, value in enumerate(values, 1) if math.isfinite(value)]
    return thinned(smoothed(points, max(1.0, len(points) * SMOOTHING)), min(_POINTS, len(points))) if points else []


def _top(curves: Sequence[Sequence[Point]]) -> float:
    highest = sorted(max(y for _, y in curve) for curve in curves)
    middle = highest[len(highest) // 2]
    usual = max(y for y in highest if y <= _BEYOND * middle) or 1.0
    step = round_step(usual, 4)
    return step * math.ceil(usual / step - 1e-9)


def _corners(curve: Sequence[Point], top: float, last: int) -> str:
    """In units of SIDE; what lies far above the scale is cut, for no number may be huge."""
    return " ".join(f"{round(SIDE * x / last)},{round(SIDE * (1 - min(y / top, 9.0)))}" for x, y in curve)


def _panel(place: int, name: str, values: Sequence[float], drawn: Sequence[int], top: float, last: int) -> str:
    others = "".join(f'<use href="#loss{other}" class="raw"/>' for other in drawn if other != place)
    own = f'<use href="#loss{place}" class="first"/>' if place in drawn else ""
    grid = "".join(f'<line class="grid" x1="0" x2="{SIDE}" y1="{y}" y2="{y}"/>' for y in (0, SIDE // 2, SIDE))
    said = _said(values)
    return (
        f'<figure class="panel overlay"><figcaption><b>{text(name)}</b> <span>{said}</span></figcaption>'
        f'<svg role="img" aria-label="{text(f"Loss of {name}: {said}")}" viewBox="0 0 {SIDE} {SIDE}" '
        f'preserveAspectRatio="none">{grid}{others}{own}</svg></figure>\n'
    )


def _said(values: Sequence[float]) -> str:
    """The mean of the last tenth."""
    return f"{mean(values[-max(1, len(values) // 10) :]):.4f} in the end"
