"""A pen that draws flat, outlined shapes through an affine map onto a supersampled Pillow canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

INK: Colour = (58, 38, 52)
_CIRCLE = tuple((math.cos(i * math.tau / 28), math.sin(i * math.tau / 28)) for i in range(28))


class Pen:
    """Draws in the doll's own units: 1 unit is 1 pixel of a full-body picture of 128 pixels; y points down."""

    def __init__(self, canvas: ImageDraw.ImageDraw, scale: float, x: float = 0.0, y: float = 0.0) -> None:
        self._canvas = canvas
        self._map = (scale, 0.0, x, 0.0, scale, y)
        self._line = 1.25 * scale

    def moved(self, x: float, y: float, *, degrees: float = 0.0, scale: float = 1.0, mirror: bool = False) -> Pen:
        """A pen whose origin lies at (x, y) of this one, turned clockwise, scaled, and mirrored if asked."""
        a, b, _, d, e, _ = self._map
        c, f = self._place((x, y))
        cos, sin = math.cos(math.radians(degrees)) * scale, math.sin(math.radians(degrees)) * scale
        flip = -1.0 if mirror else 1.0
        pen = Pen(self._canvas, 1.0)
        pen._map = (flip * (a * cos + b * sin), b * cos - a * sin, c, flip * (d * cos + e * sin), e * cos - d * sin, f)
        pen._line = self._line * math.sqrt(scale)
        return pen

    def blob(self, points: Sequence[Point], fill: Colour, *, outline: Colour | None = INK) -> None:
        """A closed smooth curve through the points."""
        self._fill(_smooth(tuple(points)), fill, outline)

    def shape(self, points: Sequence[Point], fill: Colour, *, outline: Colour | None = INK) -> None:
        """A closed polygon with sharp corners."""
        self._fill(points, fill, outline, corners=True)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, *, outline: Colour | None = INK) -> None:
        """An ellipse about (x, y)."""
        self._fill([(x + rx * cos, y + ry * sin) for cos, sin in _CIRCLE], fill, outline)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """An open line with round joints and ends."""
        self._thick([self._place(point) for point in points], width * self._unit(), colour)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A thick outlined line: an arm, a leg or a sleeve."""
        placed = [self._place(point) for point in points]
        self._thick(placed, width * self._unit() + self._line, INK)
        self._thick(placed, width * self._unit() - self._line, fill)

    def _unit(self) -> float:
        return math.hypot(self._map[0], self._map[3])

    def _place(self, point: Point) -> Point:
        a, b, c, d, e, f = self._map
        return (a * point[0] + b * point[1] + c, d * point[0] + e * point[1] + f)

    def _fill(self, points: Sequence[Point], fill: Colour, outline: Colour | None, *, corners: bool = False) -> None:
        a, b, c, d, e, f = self._map
        placed = [(a * x + b * y + c, d * x + e * y + f) for x, y in points]
        self._canvas.polygon(placed, fill=fill)
        if outline is not None:
            closed = [*placed, placed[0], placed[1]]  # past the first point, so that its corner is joined too
            self._canvas.line(closed, outline, round(self._line), joint="curve" if corners else None)

    def _thick(self, placed: Sequence[Point], width: float, colour: Colour) -> None:
        self._canvas.line(placed, colour, max(1, round(width)))
        r = width / 2
        for x, y in placed:
            self._canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def part(points: Sequence[Point], start: float, end: float) -> list[Point]:
    """The stretch of a polyline between two fractions of its number of segments, for sleeves and socks."""
    last = len(points) - 1

    def at(t: float) -> Point:
        i = min(int(t * last), last - 1)
        u = t * last - i
        (x0, y0), (x1, y1) = points[i], points[i + 1]
        return (x0 + (x1 - x0) * u, y0 + (y1 - y0) * u)

    between = [points[i] for i in range(1, last) if start < i / last < end]
    return [at(start), *between, at(end)]


def mirrored(points: Sequence[Point]) -> list[Point]:
    """A symmetric outline from its right half, given from top to bottom."""
    return [*points, *((-x, y) for x, y in reversed(points) if abs(x) > 1e-9)]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or moved towards white (above 1)."""
    if factor <= 1:
        return (round(colour[0] * factor), round(colour[1] * factor), round(colour[2] * factor))
    white = factor - 1
    return (
        round(colour[0] + (255 - colour[0]) * white),
        round(colour[1] + (255 - colour[1]) * white),
        round(colour[2] + (255 - colour[2]) * white),
    )


@lru_cache(maxsize=512)
def _smooth(points: tuple[Point, ...], steps: int = 5) -> tuple[Point, ...]:
    """A closed Catmull-Rom spline through the points, sampled `steps` times a segment.

    The points do not depend on a drawing's jitter, so nearly every call is answered from the cache.
    """
    out: list[Point] = []
    n = len(points)
    for i in range(n):
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (points[(i + k - 1) % n] for k in range(4))
        for step in range(steps):
            t = step / steps
            w0, w1 = -0.5 * t + t * t - 0.5 * t**3, 1 - 2.5 * t * t + 1.5 * t**3
            w2, w3 = 0.5 * t + 2 * t * t - 1.5 * t**3, -0.5 * t * t + 0.5 * t**3
            out.append((w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3))
    return tuple(out)
