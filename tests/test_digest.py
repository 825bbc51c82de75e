"""Keys: different fields give different keys, and the text that explains a key holds all that the key holds."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorac.digest import Manifest, Value, digest, file_digest, short

NASTY = st.text(st.sampled_from('a=,:"{}[]0123 é\udce9'), max_size=12)
"""Strings made of the signs that the written form uses itself."""
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), NASTY, st.just(""), st.binary(min_size=1, max_size=3)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3), max_leaves=8
)


def manifest(**fields: Value) -> Manifest:
    made = Manifest()
    for name, value in fields.items():
        made.field(name, value)
    return made


def decoded(fields: deque[tuple[str, str]]) -> Any:
    """Take the next value that `Manifest.field` wrote. That this is possible proves that nothing is ambiguous."""
    name, text = fields.popleft()
    if not text.startswith("table of "):
        return parsed(text)
    table = {}
    for _ in range(int(text.removeprefix("table of "))):
        assert fields[0][0].startswith(f"{name}.")
        key = fields[0][0].removeprefix(f"{name}.")
        table[key] = decoded(fields)
    return table


def parsed(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text in words:
        return words[text]
    if text[0] == '"':
        return text[1:-1]
    if text.startswith("sha256:"):
        return bytes.fromhex(text[7:])
    if text[0] in "[{":
        count, _, rest = text[1:-1].partition(": ")
        table, values = {}, []
        for _ in range(int(count)):
            first, rest = framed(rest)
            if text[0] == "{":
                second, rest = framed(rest.removeprefix("="))
                table[first] = parsed(second)
            else:
                values.append(parsed(first))
            rest = rest.removeprefix(", ")
        assert rest == ""
        return table if text[0] == "{" else values
    return float.fromhex(text) if "x" in text or text.lstrip("-") in ("nan", "inf") else int(text)


def framed(text: str) -> tuple[str, str]:
    size, _, rest = text.partition(":")
    return rest[: int(size)], rest[int(size) :]


def typed(value: Any) -> Any:
    """A form in which 1, 1.0, True, "1" and -0.0 differ, and NaN is itself."""
    if isinstance(value, Mapping):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [typed(item) for item in value]
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


@settings(deadline=None, derandomize=True)
@given(VALUES)
def test_a_manifest_can_be_read_back_so_no_two_values_share_one(value: Any) -> None:
    fields = deque(manifest(params=value).fields)
    assert typed(decoded(fields)) == typed(value)
    assert not fields


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(NASTY, NASTY), max_size=4), st.lists(st.tuples(NASTY, NASTY), max_size=4))
def test_keys_are_equal_for_equal_fields_only(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    assert (Manifest(one).key() == Manifest(other).key()) == (one == other)


def test_the_key_is_the_hash_of_length_framed_fields() -> None:
    expected = hashlib.sha256(b"lorac key 1\0")
    for text in ("kind", '"image"', "ä", "7"):
        expected.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    assert manifest(kind="image", ä=7).key() == expected.digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        (None, "none"),
        (0.1, 0.1 + 2**-55),
        (["a", "b"], ["b", "a"]),
        (["a", "b"], ["a, b"]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"a": 1}, [("a", 1)]),
        (b"a", "sha256:61"),
        ("é", "\udcc3\udca9"),
        ("?", "\udce9"),
        # found by the decoder above: a prompt that looks like the end of a prompt and a negative
        ([{"negative": 'a", 6:prompt="b', "prompt": "c"}], [{"negative": "a", "prompt": 'b", 6:prompt="c'}]),
    ],
)
def test_these_differ(one: Any, other: Any) -> None:
    assert manifest(x=one).key() != manifest(x=other).key()


def test_the_order_of_a_table_and_the_kind_of_a_sequence_do_not_matter() -> None:
    assert manifest(x={"a": 1, "b": (1, 2)}).key() == manifest(x={"b": [1, 2], "a": 1}).key()


@settings(deadline=None, derandomize=True)
@given(VALUES)
def test_a_manifest_that_went_through_the_ledger_has_the_same_key(value: Any) -> None:
    made = manifest(params=value)
    read = Manifest((name, text) for name, text in json.loads(json.dumps(made.fields)))
    assert read.key() == made.key()
    assert made.difference(read) == []


def test_the_difference_names_what_changed_appeared_and_went() -> None:
    old, new = manifest(a=1, b=2, c={"x": 1}), manifest(a=1, b=3, c={"y": 1})
    assert new.difference(old) == [("b", "2", "3"), ("c.y", None, "1"), ("c.x", "1", None)]


@pytest.mark.parametrize("size", [0, 1, 2**18 + 1])
def test_digests_of_files_are_those_of_their_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "f").write_bytes(data)
    assert file_digest(tmp_path / "f") == digest(data) == hashlib.sha256(data).digest()
    assert short(digest(data)) == hashlib.sha256(data).hexdigest()[:12]
