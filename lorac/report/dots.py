"""Figures with their intervals, drawn: a dot on a line from 0 to 1 with whiskers, and small panels of such dots.

All places are percentages, so a drawing is as wide as its box, and text and dots keep their size on every screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lorac.evaluate.figures import Measure
from lorac.report.markup import percent, text


@dataclass(frozen=True)
class Point:
    """One dot of a panel: its name on the axis, its figure, or None where there is none."""

    name: str
    value: float | None
    low: float = 0.0
    high: float = 0.0


def _at(share: float) -> str:
    """A place between 0 and 1, in percent with a tenth."""
    return f"{100 * min(max(share, 0.0), 1.0):.1f}".removesuffix(".0") + "%"


def spoken(measure: Measure) -> str:
    """A figure in words, for screen readers."""
    return f"{percent(measure.value)}, between {percent(measure.low)} and {percent(measure.high)}"


def dot(measure: Measure, style: str, without: Measure | None = None, name: str = "") -> str:
    """One figure on its line. `without` is a tick for comparison; `style` is the class of the colour."""
    said, tick = f"{name} {spoken(measure)}".strip(), ""
    if without:
        said += f"; without the LoRA {percent(without.value)}"
        tick = f'<line class="without" x1="{_at(without.value)}" x2="{_at(without.value)}" y1="8%" y2="92%"/>'
    return (
        f'<svg class="dot {style}" role="img" aria-label="{text(said)}">'
        f'<line class="track" x1="0" x2="100%" y1="50%" y2="50%"/>{tick}'
        f'<line class="whisker" x1="{_at(measure.low)}" x2="{_at(measure.high)}" y1="50%" y2="50%"/>'
        f'<circle cx="{_at(measure.value)}" cy="50%" r="4"/></svg>'
    )


def dumbbell(rate: float, without: float, name: str) -> str:
    """A rate and, joined to it, the one without the LoRA."""
    said = f"{name}: {percent(rate)}, without the LoRA {percent(without)}"
    return (
        f'<svg class="dot bad" role="img" aria-label="{text(said)}">'
        '<line class="track" x1="0" x2="100%" y1="50%" y2="50%"/>'
        f'<line class="whisker" x1="{_at(without)}" x2="{_at(rate)}" y1="50%" y2="50%"/>'
        f'<line class="without" x1="{_at(without)}" x2="{_at(without)}" y1="8%" y2="92%"/>'
        f'<circle cx="{_at(rate)}" cy="50%" r="4"/></svg>'
    )


def panel(title: str, note: str, points: Sequence[Point], style: str, marked: int | None = None) -> str:
    """A small chart of `points` side by side, from 0 to 1, with the number `marked` on a shaded ground."""
    count = len(points)
    places = [(number + 0.5) / count for number in range(count)]
    drawn = [(place, point.value) for place, point in zip(places, points, strict=True) if point.value is not None]
    lines = "".join(
        f'<line class="join" x1="{_at(x)}" y1="{_at(1 - y)}" x2="{_at(next_x)}" y2="{_at(1 - next_y)}"/>'
        for (x, y), (next_x, next_y) in pairwise(drawn)
    )
    ground = ""
    if marked is not None:
        ground = f'<rect class="marked" x="{_at(marked / count)}" width="{_at(1 / count)}" y="0" height="100%"/>'
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{_at(y)}" y2="{_at(y)}"/>' for y in (0, 0.5, 1))
    dots = "".join(_point(place, point) for place, point in zip(places, points, strict=True))
    names = "".join(_name(place, point) for place, point in zip(places, points, strict=True))
    said = "; ".join(f"{p.name} {'none' if p.value is None else percent(p.value)}" for p in points)
    return (
        f'<figure class="panel {style}"><figcaption><b>{text(title)}</b> <span>{text(note)}</span></figcaption>'
        f'<svg role="img" aria-label="{text(f"{title}: {said}")}">'
        f"{ground}{grid}{lines}{dots}{names}</svg></figure>\n"
    )


def _point(place: float, point: Point) -> str:
    if point.value is None:
        return ""
    whisker = ""
    if point.high > point.low:
        whisker = (
            f'<line class="whisker" x1="{_at(place)}" x2="{_at(place)}" '
            f'y1="{_at(1 - point.high)}" y2="{_at(1 - point.low)}"/>'
        )
    return f'{whisker}<circle cx="{_at(place)}" cy="{_at(1 - point.value)}" r="4"/>'


def _name(place: float, point: Point) -> str:
    value = "–" if point.value is None else percent(point.value)
    return (
        f'<text x="{_at(place)}" y="100%" dy="17" text-anchor="middle">{text(point.name)}</text>'
        f'<text class="value" x="{_at(place)}" y="100%" dy="32" text-anchor="middle">{value}</text>'
    )
