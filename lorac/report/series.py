"""What is drawn of a series of numbers: few enough points, a smooth line, round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]

MOST_POINTS = 400
_STEPS_PER_POINT = 7  # below MOST_POINTS: single steps are mostly the noise of their timestep
SMOOTHING = 1 / 20  # width of the smoothing, as a share of the series
_FEW = 60  # so short a series is drawn as it is


def thinned(points: Sequence[Point], most: int | None = None) -> list[Point]:
    """At most `most` points: the means of consecutive runs whose lengths differ by at most one.

    Without `most`, as many as a reader can use: MOST_POINTS of a long series, all of a short one.
    """
    n = len(points)
    count = min(n, most or min(MOST_POINTS, max(_FEW, n // _STEPS_PER_POINT)))
    edges = [k * n // count for k in range(count + 1)] if count else []
    return [_mean_point(points[start:end]) for start, end in pairwise(edges)]


def sampled(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS of `points`, evenly spaced, with the first and the last: for a line without noise."""
    last = len(points) - 1
    if last < MOST_POINTS:
        return list(points)
    return [points[k * last // (MOST_POINTS - 1)] for k in range(MOST_POINTS)]


def _mean_point(points: Sequence[Point]) -> Point:
    return math.fsum(x for x, _ in points) / len(points), math.fsum(y for _, y in points) / len(points)


def smoothed(points: Sequence[Point], width: float) -> list[Point]:
    """Each value replaced by the mean of all, weighted by exp(-|i - j| / width).

    That is an exponential moving average run in both directions: unlike the usual one it neither lags behind nor begins
    with the noise of the first value. Linear in the number of points.
    """
    decay = math.exp(-1 / width)
    ahead = _decayed([y for _, y in points], decay)
    behind = _decayed([y for _, y in reversed(points)], decay)[::-1]
    weight_ahead = _decayed([1.0] * len(points), decay)
    weight_behind = weight_ahead[::-1]
    return [
        (x, (ahead[i] + behind[i] - y) / (weight_ahead[i] + weight_behind[i] - 1)) for i, (x, y) in enumerate(points)
    ]


def _decayed(values: Sequence[float], decay: float) -> list[float]:
    """Running sums in which what came before counts `decay` times as much at each step."""
    sums, total = [], 0.0
    for value in values:
        total = total * decay + value
        sums.append(total)
    return sums


def mean(values: Sequence[float]) -> float:
    """The mean of the finite ones; not a number if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def round_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that divides `span` into at most `parts` parts."""
    least = span / parts
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))
