"""Caption rules: golden files, and kohya's order of operations for each showing.

`cases/captions/NAME.txt` holds rules as TOML, a line `# input`, raw captions, a line `# output`, final captions, and
perhaps a line `# unmatched` and the rules that met nothing.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from lorac.captions import (
    KAOMOJI,
    Rules,
    apply,
    decode_caption,
    is_dropped,
    joined,
    normal,
    split_tags,
    unmatched,
    variant,
)
from lorac.rng import Stream

CASES = sorted((Path(__file__).parent / "cases" / "captions").glob("*.txt"))
TAGS = ("riho", "a", "b", "c", "d", "e")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_case(case: Path) -> None:
    head, rest = case.read_text(encoding="utf-8").split("# input\n")
    given, rest = rest.split("# output\n")
    expected, _, left = rest.partition("# unmatched\n")
    table = tomli.loads(head)
    rules = Rules(
        trigger=tuple(table.get("trigger", ())),
        exclude=tuple(table.get("exclude", ())),
        replace=tuple(table.get("replace", {}).items()),
        prefix=table.get("prefix", ""),
        suffix=table.get("suffix", ""),
    )
    assert [joined(apply(rules, line)) for line in given.splitlines()] == expected.splitlines()
    assert list(unmatched(rules, given.splitlines())) == left.splitlines()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"1girl, smile", "1girl, smile"),
        (b"  1girl, smile \r\nsecond line\n", "1girl, smile"),
        ("りほ, é".encode(), "りほ, é"),
        (b"a_b\n\n", "a_b"),
    ],
)
def test_decoding(data: bytes, text: str) -> None:
    assert decode_caption(data) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; write its tags, or delete the file"),
        (b"\n1girl", "has no tags on its first line; write some, or delete the file"),
        (b" , ,\n", "has no tags on its first line; write some, or delete the file"),
        (b"\xef\xbb\xbf1girl", "begins with a byte order mark (BOM); save it as UTF-8 without BOM"),
        ("1girl".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("1girl, りほ".encode("cp932"), "is not UTF-8 but probably Shift-JIS (cp932); save it as UTF-8"),
        (b"\xff\xff\xff", "is not UTF-8; save it as UTF-8"),
    ],
)
def test_captions_that_cannot_be_used(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match="s") as caught:
        decode_caption(data)
    assert str(caught.value) == message


def test_normal_form() -> None:
    assert normal("  long_hair ") == "long hair"
    assert normal("Long__Hair") == "Long Hair"
    assert {normal(f" {face} ") for face in KAOMOJI} == KAOMOJI
    assert split_tags("a_b, ,^_^,, c ") == ["a b", "^_^", "c"]


@given(st.text("aA_ ,^", max_size=12), st.lists(st.text("aA_ ", max_size=3), max_size=2))
def test_rules_give_normal_tags_each_once(raw: str, trigger: list[str]) -> None:
    rules = Rules(trigger=tuple(trigger), prefix=raw[:3], suffix=raw[3:])
    tags = apply(rules, raw)
    assert all(tag and tag == normal(tag) for tag in tags)
    assert len({tag.casefold() for tag in tags}) == len(tags)
    assert apply(rules, joined(tags)) == tags


def shown(seed: int, **how: object) -> list[int]:
    return variant(TAGS, Stream(seed, "caption"), **how)  # type: ignore[arg-type]


def test_nothing_asked_nothing_changed() -> None:
    assert shown(1) == [0, 1, 2, 3, 4, 5]


@given(st.integers(0, 1000), st.integers(0, 8))
def test_shuffling_keeps_the_first_tags_and_loses_none(seed: int, keep: int) -> None:
    order = shown(seed, shuffle=True, keep_tokens=keep)
    assert order[:keep] == list(range(min(keep, 6)))
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert order == shown(seed, shuffle=True, keep_tokens=keep)


def test_every_order_is_equally_likely() -> None:
    """Each of the 5 shuffled tags stands in each of the 5 places a fifth of the time: 1000 of 5000, sigma 28."""
    counts = [[0] * 6 for _ in range(6)]
    for seed in range(5000):
        for place, index in enumerate(shown(seed, shuffle=True, keep_tokens=1)):
            counts[index][place] += 1
    assert counts[0] == [5000, 0, 0, 0, 0, 0]
    assert all(abs(counts[index][place] - 1000) < 140 for index in range(1, 6) for place in range(1, 6))


def test_tag_dropout_spares_the_kept_tags() -> None:
    orders = [shown(seed, keep_tokens=2, tag_dropout=0.25) for seed in range(4000)]
    assert all(order[:2] == [0, 1] and order == sorted(order) for order in orders)
    for index in range(2, 6):
        assert abs(sum(index in order for order in orders) - 3000) < 140
    assert shown(1, keep_tokens=2, tag_dropout=1.0) == [0, 1]
    assert shown(1, tag_dropout=1.0) == []


def test_dropout_comes_behind_the_shuffle() -> None:
    """As in kohya, whatever is left stands in the order of the shuffle alone."""
    for seed in range(50):
        order = shown(seed, shuffle=True, keep_tokens=1)
        left = shown(seed, shuffle=True, keep_tokens=1, tag_dropout=0.5)
        assert left == [index for index in order if index in left]


def test_a_dropped_caption_is_empty_whatever_is_kept() -> None:
    assert shown(1, shuffle=True, keep_tokens=3, caption_dropped=True) == []


def test_caption_dropout() -> None:
    def dropped(epoch: int, rate: float, every: int) -> int:
        return sum(is_dropped(Stream(seed, "drop"), epoch, rate, every) for seed in range(2000))

    assert dropped(1, 0.0, 0) == 0
    assert dropped(1, 1.0, 0) == 2000
    assert abs(dropped(1, 0.25, 0) - 500) < 100
    assert [dropped(epoch, 0.0, 3) for epoch in range(1, 7)] == [0, 0, 2000, 0, 0, 2000]


def test_no_global_randomness() -> None:
    random.seed(1)
    before = random.getstate()
    shown(3, shuffle=True, tag_dropout=0.5)
    assert random.getstate() == before
