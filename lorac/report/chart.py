"""Line charts as inline SVG.

The lines live in a nested SVG of SIDE by SIDE units that is stretched to whatever room there is, with strokes that do
not scale; labels are placed in percent around it. So the same bytes are sharp and legible on a phone, a desk and paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorac.report.markup import number, text
from lorac.report.series import Point, round_step

SIDE = 1000
_LABEL_ROOM = 0.12  # share of the width that a label on top of a mark takes on a phone


@dataclass(frozen=True)
class Line:
    """One line: its name in the legend, its class in the style sheet, its (step, value) points."""

    name: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Axes:
    """Steps run from 0 to `last_step`, left to right; values from 0 to `top`, upwards; ticks as values."""

    last_step: int
    top: float
    step_ticks: Sequence[float]
    value_ticks: Sequence[float]

    def x(self, step: float) -> float:
        """From the left, in units of SIDE."""
        return SIDE * step / self.last_step

    def y(self, value: float) -> float:
        """From the top, in units of SIDE, as SVG counts."""
        return SIDE * (1 - value / self.top)


def axes(lines: Sequence[Line], last_step: int) -> Axes:
    """Axes that show all of `lines`: from 0 to the first round value above them."""
    highest = max((y for line in lines for _, y in line.points), default=0.0) or 1.0
    step = round_step(highest, 5)
    count = math.ceil(highest / step - 1e-9)
    stride = math.ceil(round_step(last_step, 6))
    return Axes(last_step, step * count, range(0, last_step + 1, stride), [step * i for i in range(count + 1)])


def chart(
    lines: Sequence[Line], last_step: int, description: str, marks: Sequence[int] = (), style: str = "chart"
) -> str:
    """A <figure> of `lines` over the steps 1 to `last_step`, with dashed verticals at the steps `marks`.

    `description` is what a screen reader says instead of the picture; the legend calls the verticals "file saved".
    """
    scale = axes(lines, last_step)
    return (
        f'<figure class="{style}"><svg role="img" aria-label="{text(description)}">'
        f"{_ticks(scale)}{_mark_labels(scale, marks)}"
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" width="100%" height="100%">'
        f"{_grid(scale)}{_marks(scale, marks)}{''.join(_path(scale, line) for line in lines)}</svg></svg>"
        f"<figcaption>{_legend(lines, bool(marks))}</figcaption></figure>\n"
    )


def _c(value: float) -> str:
    """A coordinate with a precision of a tenth of a unit, which is finer than a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _path(scale: Axes, line: Line) -> str:
    corners = " ".join(f"{_c(scale.x(step))},{_c(scale.y(value))}" for step, value in line.points)
    return f'<polyline class="{line.style}" points="{corners}"/>'


def _grid(scale: Axes) -> str:
    heights = [_c(scale.y(value)) for value in scale.value_ticks]
    return "".join(f'<line class="grid" x1="0" x2="{SIDE}" y1="{y}" y2="{y}"/>' for y in heights)


def _marks(scale: Axes, marks: Sequence[int]) -> str:
    places = [_c(scale.x(step)) for step in marks]
    return "".join(f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="{SIDE}"/>' for x in places)


def _mark_labels(scale: Axes, marks: Sequence[int]) -> str:
    """Step numbers on top of the marks, from the right, leaving out those that would overlap."""
    labels, free = [], math.inf
    for step in sorted(marks, reverse=True):
        share = scale.x(step) / SIDE
        if share <= free:
            anchor = "end" if share > 1 - _LABEL_ROOM / 2 else "middle"
            labels.append(f'<text x="{_c(100 * share)}%" y="0" dy="-7" text-anchor="{anchor}">{number(step)}</text>')
            free = share - _LABEL_ROOM * (1.5 if anchor == "end" else 1)
    return "".join(reversed(labels))


def _ticks(scale: Axes) -> str:
    values = "".join(
        f'<text x="0" y="{_c(scale.y(value) * 100 / SIDE)}%" dx="-8" dy="4" text-anchor="end">{number(value)}</text>'
        for value in scale.value_ticks
    )
    steps = "".join(
        f'<text x="{_c(scale.x(step) * 100 / SIDE)}%" y="100%" dy="18" text-anchor="middle">{number(step)}</text>'
        for step in scale.step_ticks
    )
    return f'{values}{steps}<text class="title" x="100%" y="100%" dy="36" text-anchor="end">step</text>'


def _legend(lines: Sequence[Line], marked: bool) -> str:
    keys = [(line.style, line.name) for line in lines] + ([("mark", "file saved")] if marked else [])
    return "".join(f'<span class="key"><i class="{style}"></i>{text(name)}</span>' for style, name in keys)
