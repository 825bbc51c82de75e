"""The drawing of the build graph: nothing is lost by leaving arrows out, nothing overlaps, nothing depends on order."""

from __future__ import annotations

import re
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from lorac.report.graph import drawing, reduced
from tests.pages import ITEMS, READS

Graph = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Kinds "k00" to "k13" at most, each of which reads some of those before it, in any order."""
    count = draw(st.integers(1, 14))
    names = [f"k{number:02}" for number in draw(st.permutations(range(count)))]
    return {name: draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else [] for i, name in enumerate(names)}


def reachable(reads: Graph, kind: str) -> set[str]:
    found: set[str] = set()
    todo = [kind]
    while todo:
        for source in reads[todo.pop()]:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


@settings(max_examples=50)
@given(graphs())
def test_the_arrows_that_are_left_say_the_same_and_none_can_be_left_out(reads: Graph) -> None:
    fewer = reduced(reads)
    assert fewer.keys() == reads.keys()
    for kind in reads:
        assert reachable(fewer, kind) == reachable(reads, kind)
        for source in fewer[kind]:
            without = fewer | {kind: [other for other in fewer[kind] if other != source]}
            assert source not in reachable(without, kind)


@settings(max_examples=50)
@given(graphs())
def test_boxes_do_not_overlap_and_arrows_point_down(reads: Graph) -> None:
    fewer = reduced(reads)
    svg = drawing(fewer, dict.fromkeys(reads, 7))
    width, height = (float(part) for part in re.findall(r'viewBox="0 0 (\S+) (\S+)" style', svg)[0])
    found = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', svg)
    boxes = [tuple(map(float, box)) for box in found]
    assert sorted(re.findall(r">(k\d\d)</text>", svg)) == sorted(reads)
    assert len(boxes) == len(reads)
    assert all(x >= 0 and y >= 0 and x + w <= width + 1 and y + h <= height for x, y, w, h in boxes)
    for (x, y, w, h), (u, v, _, _) in combinations(boxes, 2):
        assert abs(x - u) >= w or abs(y - v) >= h
    paths = re.findall(r'class="arrow" d="M\S+ (\S+?)C(.*?)"', svg)
    assert len(paths) == sum(map(len, fewer.values()))
    for start, curves in paths:
        ends = [float(curve.split()[-1]) for curve in curves.split("C")]
        assert [float(start), *ends] == sorted([float(start), *ends])


@given(st.permutations(list(READS)))
def test_the_order_of_the_kinds_means_nothing(order: list[str]) -> None:
    shuffled = {kind: list(reversed(READS[kind])) for kind in order}
    assert drawing(reduced(shuffled), ITEMS) == drawing(reduced(READS), ITEMS)


def test_what_was_made_is_outlined() -> None:
    svg = drawing({"a": [], "b": ["a"]}, {"a": 1, "b": 1200}, {"b": 3})
    assert re.findall(r'class="box (\w+)"><rect[^>]*/><text[^>]*>(\w)</text>', svg) == [("found", "a"), ("ran", "b")]
    assert "× 1,200" in svg


def test_a_graph_as_a_recipe_has_it_is_narrow_enough_for_a_phone() -> None:
    width = float(re.findall(r'viewBox="0 0 (\S+)', drawing(reduced(READS), ITEMS))[0])
    assert width <= 400
