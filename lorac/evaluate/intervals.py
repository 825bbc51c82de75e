"""95 % intervals of rates, of means over pictures, and of leakage.

Shape suffixes: N pictures, T tags, R resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, pi, sin, sqrt

import numpy as np
import numpy.typing as npt

from lorac.evaluate.figures import Measure
from lorac.rng import seed64

Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""
RESAMPLINGS = 1000
ALIKE = 1e-9
"""Values in [0, 1] that differ by less are equal but for rounding."""
DIGITS = 6
"""Figures are rounded to so many digits, so that the order of a sum does not show."""


def rate(hits: int, n: int) -> Measure | None:
    """`hits` of `n` with Wilson's score interval: E. B. Wilson, Probable Inference, the Law of Succession, and
    Statistical Inference, JASA 22 (1927) 209-212. None without observations."""
    return _measure(hits / n, *wilson(hits / n, n), n) if n else None


def wilson(p: float, n: int) -> tuple[float, float]:
    """The interval around a rate `p` of `n` observations; not empty even where all are alike."""
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return centre - half, centre + half


def mean(values: Sequence[float]) -> Measure | None:
    """The mean of values in [0, 1], one for each picture, with Student's t interval (Student, The Probable Error of a
    Mean, Biometrika 6 (1908) 1-25), cut to [0, 1].

    Values that are all alike say nothing about how they spread; then, and for a single one, the interval is Wilson's,
    which is wide enough for whatever lies in [0, 1]: the variance is at most p (1 - p). None without values.
    """
    n = len(values)
    if not n:
        return None
    centre = sum(values) / n
    if max(values) - min(values) < ALIKE:
        return _measure(centre, *wilson(min(max(centre, 0.0), 1.0), n), n)
    spread = sqrt(sum((value - centre) ** 2 for value in values) / (n - 1))
    half = student(n - 1) * spread / sqrt(n)
    return _measure(centre, centre - half, centre + half, n)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, by bisection of its distribution function."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz & Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = term if freedom > 1 or not odd else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, of what is counted in no single number of observations, such as a difference."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}"


def combined(terms: Sequence[tuple[float, Measure | Estimate]]) -> Estimate:
    """Σ cᵢ xᵢ of independent figures, with the interval of Zou and Donner (Statistics in Medicine 27, 2008, 1693).

    Each side is the root of the summed squares of what the terms contribute to it. For a difference of two rates with
    Wilson's intervals it is Newcombe's method 10 (ibid. 17, 1998, 873).
    """
    value = sum(factor * x.value for factor, x in terms)
    down = sum((factor * (x.value - (x.low if factor > 0 else x.high))) ** 2 for factor, x in terms)
    up = sum((factor * ((x.high if factor > 0 else x.low) - x.value)) ** 2 for factor, x in terms)
    return Estimate(value, value - sqrt(down), value + sqrt(up))


def average(measures: Sequence[Measure]) -> Measure:
    """The mean of at least one independent figure, each of which counts the same."""
    mean = combined([(1 / len(measures), measure) for measure in measures])
    return Measure(mean.value, mean.low, mean.high, sum(measure.n for measure in measures))


def mean_pair(cells: Sequence[npt.NDArray[np.float64]]) -> Measure | None:
    """The mean over all pairs of pictures of a cell, then over cells by their pictures; each cell is (N, N), symmetric.

    A picture is in many pairs, so these are not independent. The interval is that of the jackknife for U-statistics
    (J. N. Arvesen, Jackknifing U-statistics, Ann. Math. Statist. 40 (1969) 2076-2100): Student's, of the pseudo-values,
    one for each picture. Cells of two pictures have none; with nothing else, nothing is known: [0, 1].
    """
    cells = [cell for cell in cells if len(cell) > 1]
    if not cells:
        return None
    means = [(float(cell.sum()) - float(np.trace(cell))) / (len(cell) * (len(cell) - 1)) for cell in cells]
    n = sum(map(len, cells))
    centre = sum(value * len(cell) for value, cell in zip(means, cells, strict=True)) / n
    pseudo = [value for cell, u in zip(cells, means, strict=True) if len(cell) > 2 for value in _pseudo(cell, u)]
    found = mean(pseudo)
    if found is None:
        return _measure(centre, 0.0, 1.0, n)
    return _measure(centre, min(found.low, centre), max(found.high, centre), n)


def _pseudo(cell_NN: npt.NDArray[np.float64], u: float) -> list[float]:
    """n U - (n - 1) U₋ᵢ, where U₋ᵢ is the mean over the pairs without picture i."""
    n = len(cell_NN)
    own_N = (cell_NN.sum(axis=1) - np.diag(cell_NN)) / (n - 1)
    without_N = (n * u - 2 * own_N) / (n - 2)
    return [float(value) for value in n * u - (n - 1) * without_N]


def excess(
    with_NT: npt.NDArray[np.bool_], without_NT: npt.NDArray[np.bool_], counts_NT: npt.NDArray[np.bool_]
) -> Measure | None:
    """The mean over tags of max(0, rate with - rate without); a tag's rates are over the pictures that count for it.

    Row i of both is drawn from the same noise. The interval is the percentile bootstrap over rows (B. Efron, Bootstrap
    Methods: Another Look at the Jackknife, Ann. Statist. 7 (1979) 1-26; seeded, 1,000 resamplings), stretched to hold
    the value. As no excess is below 0, chance alone makes the value larger than 0 where pictures differ: for a tag of
    rate r by about 0.56 sqrt(r (1 - r) / N) if no picture is like the one without. None if no tag counts.
    """
    used_T = counts_NT.any(axis=0)
    if not used_T.any():
        return None
    with_NT, without_NT, counts_NT = with_NT[:, used_T], without_NT[:, used_T], counts_NT[:, used_T]
    n = len(with_NT)
    change_NT = (with_NT.astype(np.float64) - without_NT) * counts_NT
    total_T = counts_NT.sum(axis=0)
    value = float(np.maximum(change_NT.sum(axis=0) / total_T, 0).mean())
    bits = np.random.PCG64(seed64(0, "bootstrap", n)).random_raw(RESAMPLINGS * n)  # the raw bits never change
    picked_RN = (np.asarray(bits, np.uint64) % np.uint64(n)).astype(np.int64).reshape(RESAMPLINGS, n)
    times_RN = np.zeros((RESAMPLINGS, n))
    np.add.at(times_RN, (np.arange(RESAMPLINGS)[:, None], picked_RN), 1.0)
    # Sums of whole numbers: exact in any order.
    totals_RT = np.maximum(times_RN @ counts_NT.astype(np.float64), 1)
    values_R = np.sort(np.maximum(times_RN @ change_NT / totals_RT, 0).mean(axis=1))
    low, high = float(values_R[int(0.025 * RESAMPLINGS)]), float(values_R[int(0.975 * RESAMPLINGS) - 1])
    return _measure(value, min(low, value), max(high, value), n)


def _measure(value: float, low: float, high: float, n: int) -> Measure:
    """Rounded, and all in [0, 1]."""
    value, low, high = (round(min(max(number, 0.0), 1.0), DIGITS) for number in (value, low, high))
    return Measure(value, low, high, n)
