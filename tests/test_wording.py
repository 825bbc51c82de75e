"""The engine's words: values of a manifest read back, sizes, times, columns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lorac.digest import Manifest
from lorac.engine.wording import clock, differences, listed, padded, shown, size, width

TEXTS = st.text(st.sampled_from('ab:,= []{}"0123'), max_size=8)
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def text(value: Any) -> str:
    """`value` as a manifest has it."""
    manifest = Manifest()
    manifest.field("x", [value])
    return manifest.fields[0][1]


def holders(value: Any) -> list[tuple[Any, Any]]:
    """Every (list or table, index) in a value."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else []
    return [place for key in keys for place in [(value, key), *holders(value[key])]]


@given(VALUES)
def test_equal_values_have_no_difference(value: Any) -> None:
    assert list(differences(text(value), text(copy.deepcopy(value)))) == []


@given(st.data(), st.lists(VALUES, min_size=1, max_size=3))
def test_one_changed_leaf_is_the_one_difference(data: st.DataObject, value: list[Any]) -> None:
    changed = copy.deepcopy(value)
    places = [(holder, key) for holder, key in holders(changed) if not isinstance(holder[key], list | dict)]
    assume(places)
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = "something else"
    (found,) = differences(text(value), text(changed))
    assert found[2] == '"something else"'


def test_differences_are_named_by_their_place() -> None:
    old = [{"name": "a", "repeats": 2, "rates": [0.5, 1e-4]}, {"name": "b"}]
    new = [{"name": "a", "repeats": 3, "rates": [0.5, 2e-4]}, {"name": "b", "alpha": None}]
    assert list(differences(text(old), text(new), "folders")) == [
        ("folders 1 1.rates 2", "0.0001", "0.0002"),
        ("folders 1 1.repeats", "2", "3"),
        ("folders 1 2.alpha", "(absent)", "(not set)"),
    ]
    assert list(differences(text(["a"]), text(["a", "b"]), "tags")) == [("tags 1", '["a"]', '["a", "b"]')]


def test_what_another_version_wrote_is_shown_as_it_is() -> None:
    assert list(differences("[2: 38:{14:a=1}]", "[1: 1:1]", "x")) == [("x", "[2: 38:{14:a=1}]", "[1: 1:1]")]


def test_long_values_are_cut() -> None:
    assert shown("x" * 60) == "x" * 60
    assert shown("x" * 61) == "x" * 59 + "…"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_449, "99.4 kB"),
        (390_272, "390 kB"),
        (999_600, "1.0 MB"),
        (5_867_849, "5.9 MB"),
        (144_000_000, "144 MB"),
        (2_132_856_622, "2.1 GB"),
        (5 * 10**12, "5000 GB"),
    ],
)
def test_sizes(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0:00"), (59.6, "1:00"), (131, "2:11"), (3723, "1:02:03")])
def test_times(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected


def test_columns_count_what_a_terminal_shows() -> None:
    assert [width("abc"), width("絵 00"), width("")] == [3, 5, 0]
    assert padded("絵", 4) + "|" == "絵  |"
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
