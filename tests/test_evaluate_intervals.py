"""Intervals against tables and formulas written out in float64."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from lorac.evaluate.figures import Measure
from lorac.evaluate.intervals import combined, excess, mean, mean_pair, rate, student, wilson


def close(found: Measure | None, value: float, low: float, high: float, n: int) -> None:
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=2e-4)
    assert found.n == n


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (1, 16, 0.0111, 0.2833), (4, 4, 0.5101, 1)],
)
def test_a_rate_has_wilson_s_interval(hits: int, n: int, low: float, high: float) -> None:
    close(rate(hits, n), hits / n, low, high, n)


@pytest.mark.parametrize(("hits", "n"), [(1, 3), (7, 16), (50, 80)])
def test_a_rate_s_bounds_are_where_the_score_test_just_refuses(hits: int, n: int) -> None:
    """The definition: |p - bound| = z sqrt(bound (1 - bound) / n)."""
    found = rate(hits, n)
    assert found is not None and found.low < hits / n < found.high
    for bound in (found.low, found.high):
        assert abs(hits / n - bound) == pytest.approx(1.959964 * sqrt(bound * (1 - bound) / n), abs=1e-5)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (15, 2.1314), (40, 2.0211), (99, 1.9842), (120, 1.9799)],
)
def test_student_s_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=1e-4)


def test_a_mean_has_student_s_interval_cut_to_what_is_possible() -> None:
    close(mean([0.2, 0.4, 0.6]), 0.4, 0, 0.4 + 4.3027 * 0.2 / sqrt(3), 3)
    close(mean([0.5, 0.6]), 0.55, 0, 1, 2)  # 12.7 * 0.0707 / sqrt(2) = 0.635


def test_a_mean_of_equal_values_is_not_taken_for_certain() -> None:
    close(mean([0.0] * 10), 0, 0, 0.2775, 10)
    close(mean([0.5]), 0.5, 0.0546, 0.9454, 1)
    assert mean([]) is None and rate(0, 0) is None
    rounded = [0.3, 0.1 + 0.2, 0.3, 0.3]
    assert len(set(rounded)) == 2
    close(mean(rounded), 0.3, *wilson(0.3, 4), 4)


def test_the_mean_over_pairs_has_a_jackknife_interval() -> None:
    """Against leaving out one picture after the other and averaging the pairs that are left."""
    alike = np.array([[1, 0.2, 0.4, 0.9], [0.2, 1, 0.3, 0.5], [0.4, 0.3, 1, 0.1], [0.9, 0.5, 0.1, 1]])

    def average(kept: list[int]) -> float:
        return float(np.mean([alike[i, j] for i in kept for j in kept if i < j]))

    every = [0, 1, 2, 3]
    pseudo = [4 * average(every) - 3 * average([j for j in every if j != i]) for i in every]
    half = 3.18245 * float(np.std(pseudo, ddof=1)) / 2
    close(mean_pair([alike]), 0.4, max(0, 0.4 - half), min(1, 0.4 + half), 4)


def test_pairs_are_pairs_of_one_cell() -> None:
    two, three = np.array([[1, 0.6], [0.6, 1]]), np.full((3, 3), 0.1)
    found = mean_pair([two, three, np.ones((1, 1))])
    assert found is not None and found.value == pytest.approx((2 * 0.6 + 3 * 0.1) / 5) and found.n == 5
    close(mean_pair([two]), 0.6, 0, 1, 2)
    assert mean_pair([np.ones((1, 1))]) is None


def test_excess_is_the_mean_of_what_is_more_and_never_below_zero() -> None:
    off = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1]], np.bool_)
    on = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 0], [0, 1, 0]], np.bool_)
    counts = np.ones((4, 3), np.bool_)
    found = excess(on, off, counts)
    assert found is not None and found.value == pytest.approx((0 + 0.75 + 0.25) / 3, abs=1e-6) and found.n == 4
    assert found.low <= found.value <= found.high
    counts[2:, 1] = False  # the second tag counts in the first two pictures alone
    partly = excess(on, off, counts)
    assert partly is not None and partly.value == pytest.approx((0 + 1 + 0.25) / 3, abs=1e-6)
    counts[:, :] = False
    assert excess(on, off, counts) is None
    assert excess(off[:, :0], off[:, :0], counts[:, :0]) is None
    close(excess(off, off, np.ones((4, 3), np.bool_)), 0, 0, 0, 4)


def test_the_interval_of_excess_is_as_wide_as_a_rate_s() -> None:
    """One tag, never seen without, in half of 64 pictures with: the bootstrap is the binomial distribution."""
    on = (np.arange(64) % 2 == 0)[:, None]
    found = excess(on, np.zeros_like(on), np.ones_like(on))
    assert found is not None and found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * sqrt(0.25 / 64), abs=0.025)
    assert found.high == pytest.approx(0.5 + 1.96 * sqrt(0.25 / 64), abs=0.025)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe (Statistics in Medicine 17, 1998, 873), table II, method 10: 56/70 - 48/80 is 0.2 [0.0524, 0.3339]."""
    first = Measure(56 / 70, 0.6918, 0.8769, 70)  # Wilson's intervals, as in his companion paper
    second = Measure(48 / 80, 0.4904, 0.7005, 80)
    found = combined([(1, first), (-1, second)])
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-4)


def test_the_mean_of_two_equal_figures_is_narrower_than_one() -> None:
    one = Measure(0.5, 0.3, 0.7, 16)
    found = combined([(0.5, one), (0.5, one)])
    assert (found.low, found.high) == pytest.approx((0.5 - 0.2 / 2**0.5, 0.5 + 0.2 / 2**0.5))
