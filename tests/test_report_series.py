"""The numbers behind the report's charts, against plain formulas and by their properties."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorac.report.chart import Line, axes, chart
from lorac.report.series import MOST_POINTS, Point, round_step, sampled, smoothed, thinned


def noisy(steps: int) -> list[Point]:
    draw = random.Random(steps)
    return [(float(step), draw.random()) for step in range(1, steps + 1)]


points_of = st.integers(1, 4000).map(noisy)


@settings(deadline=None)
@given(points_of)
def test_thinned_points_are_means_of_consecutive_runs(points: list[Point]) -> None:
    few = thinned(points)
    assert len(few) <= min(MOST_POINTS, len(points))
    # The mean step of a run of consecutive steps gives the run back: it lies in its middle.
    start = 0
    lengths = []
    for step, value in few:
        length = round(2 * (step - start) - 1)
        run = [y for _, y in points[start : start + length]]
        assert value == pytest.approx(sum(run) / length)
        lengths.append(length)
        start += length
    assert start == len(points)
    assert max(lengths) - min(lengths) <= 1


@settings(deadline=None)
@given(points_of)
def test_sampled_points_are_some_of_them_with_both_ends(points: list[Point]) -> None:
    few = sampled(points)
    assert len(few) == min(MOST_POINTS, len(points))
    assert few[0] == points[0]
    assert few[-1] == points[-1]
    assert set(few) <= set(points)
    gaps = {right[0] - left[0] for left, right in pairwise(few)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_smoothing_is_the_weighted_mean_of_its_description() -> None:
    draw = random.Random(1)
    points = [(float(step), draw.random()) for step in range(60)]
    for width in (1.0, 7.5):
        for i, (step, value) in enumerate(smoothed(points, width)):
            weights = [math.exp(-abs(i - j) / width) for j in range(60)]
            expected = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / sum(weights)
            assert step == points[i][0]
            assert value == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(st.floats(1e-9, 1e9), st.integers(1, 10))
def test_round_steps(span: float, parts: int) -> None:
    step = round_step(span, parts)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - factor) for factor in (1, 2, 2.5, 5)) < 1e-6
    assert span / step <= parts * (1 + 1e-6)
    assert span / step >= parts / 2 * (1 - 1e-6)


@settings(deadline=None)
@given(st.floats(1e-7, 1e3), st.integers(1, 10**6))
def test_axes_show_everything_with_few_ticks(highest: float, steps: int) -> None:
    scale = axes([Line("loss", "raw", [(steps, highest)])], steps)
    assert 2 <= len(scale.value_ticks) <= 6
    assert 2 <= len(scale.step_ticks) <= 7
    assert highest <= scale.top * (1 + 1e-6) <= 2 * highest * (1 + 1e-6)
    assert scale.y(0) == 1000
    assert scale.x(steps) == 1000


@pytest.mark.parametrize("every", [20, 90, 100, 333])
def test_labels_of_marks_do_not_overlap(every: int) -> None:
    marks = range(every, 1001, every)
    svg = chart([Line("loss", "raw", [(1000, 1.0)])], 1000, "", marks)
    assert svg.count('class="mark"') == len(marks) + 1
    places = [float(place) for place in re.findall(r'<text x="([0-9.]+)%" y="0" dy="-7"', svg)]
    assert {round(place * 10) for place in places} <= set(marks)
    assert round(places[-1] * 10) == marks[-1]
    gaps = [right - left for left, right in pairwise(places)]
    assert all(12 - 1e-9 <= gap < 18 + max(12, every / 10) for gap in gaps)
