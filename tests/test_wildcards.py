"""Marks, choices and lines in captions: what stays in the final caption, and how it can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lorac.captions import Rules, decode_caption
from lorac.engine.protocol import Failed
from lorac.kinds import tokens
from lorac.sd.tokenizer import Tokenizer
from lorac.wildcards import MOST_SHOWINGS, Showing, final, showings
from tests.one_item import work

RULES = Rules(
    trigger=("riho",),
    exclude=("solo",),
    replace=(("smile", "grin, teeth"),),
    prefix="best",
    suffix="last",
    separator="|||",
)
WILD = Rules(exclude=("solo",), replace=(("smile", "grin"),), wildcard=True)


@pytest.mark.parametrize(
    ("raw", "text", "reading"),
    [
        ("a_b, c", "riho, best, a b, c, last", (["riho", "best", "a b", "c", "last"], None, 0)),
        (
            "a, solo ||| b, smile ||| c, SOLO",
            "riho, best, a ||| b, grin, teeth ||| c, last",
            (["riho", "best", "a", "b", "grin", "teeth", "c", "last"], 3, 2),
        ),
        ("a ||| b", "riho, best, a ||| b, last", (["riho", "best", "a", "b", "last"], 3, 0)),
        ("a ||| A, b, riho", "riho, best, a ||| b, last", (["riho", "best", "a", "b", "last"], 3, 0)),
        ("a ||| b ||| c ||| d", "riho, best, a ||| b ||| c ||| d, last", (["riho", "best", *"abcd", "last"], 3, 3)),
        ("|||a", "riho, best ||| a, last", (["riho", "best", "a", "last"], 2, 0)),
    ],
)
def test_marks(raw: str, text: str, reading: tuple[list[str], int | None, int]) -> None:
    """The rules work in all parts, triggers and prefix come first, the suffix last; tokens never have the mark."""
    assert final(RULES, raw) == text
    tags, start, end = reading
    assert showings(text, "|||") == [[Showing(tuple(tags), start, end)]]


def test_a_mark_in_the_prefix_holds_what_is_before_it() -> None:
    assert final(Rules(prefix="best |||", separator="|||"), "a, b") == "best ||| a, b"


def test_without_the_settings_signs_are_text() -> None:
    assert final(Rules(), "a ||| b, {c|d}") == "a ||| b, {c|d}"
    assert showings("a ||| b, {c|d}") == [[Showing(("a ||| b", "{c|d}"), None, 0)]]


@pytest.mark.parametrize(
    ("raw", "text", "readings"),
    [
        ("{red|blue} hair", "{red|blue} hair", [["red hair"], ["blue hair"]]),
        ("{a, b|c}, d", "{a, b|c}, d", [["a", "b", "d"], ["c", "d"]]),
        ("{{a}}, {b|{{c}}}", "{{a}}, {b|{{c}}}", [["{a}", "b"], ["{a}", "{c}"]]),
        ("{a|b} {c|d}", "{a|b} {c|d}", [["a c"], ["a d"], ["b c"], ["b d"]]),
        ("{a|a|b}", "{a|a|b}", [["a"], ["a"], ["b"]]),
        ("{|a}, b", "{|a}, b", [["b"], ["a", "b"]]),
        ("{a}, {}", "{a}, {}", [["a", "{}"]]),
        ("{a|b}, {a|b}", "{a|b}, {a|b}", [["a"], ["a", "b"], ["b", "a"], ["b"]]),
        ("{solo|smile|hat}", "{|grin|hat}", [[], ["grin"], ["hat"]]),
        ("{solo|SOLO}, x", "x", [["x"]]),
        ("{solo, a|b} c", "{a c|b c}", None),
        ("{^_^|long_hair}", "{^_^|long_hair}", [["^_^"], ["long hair"]]),
    ],
)
def test_choices(raw: str, text: str, readings: list[list[str]] | None) -> None:
    """A choice may contain commas, `{{` is a brace, and the rules reach into choices."""
    if raw == "{solo, a|b} c":
        assert final(WILD, raw) == text
        return
    assert final(WILD, raw) == text
    assert [list(shown.tags) for shown in showings(text, wildcard=True)[0]] == readings


def test_lines() -> None:
    raw = decode_caption(b" a, solo \r\n\n , \nb {c|d}\n", lines=True)
    assert raw == "a, solo\nb {c|d}"
    text = final(Rules(trigger=("riho",), exclude=("solo",), wildcard=True), raw)
    assert text == "riho, a\nriho, b {c|d}"
    lines = [[list(shown.tags) for shown in line] for line in showings(text, wildcard=True)]
    assert lines == [[["riho", "a"]], [["riho", "b c"], ["riho", "b d"]]]


def test_marks_and_choices_together() -> None:
    rules = Rules(separator="|||", wildcard=True)
    text = final(rules, "{a|b, c} ||| {d|e}, f")
    assert text == "{a|b, c} ||| {d|e}, f"
    assert [(shown.tags, shown.start) for shown in showings(text, "|||", True)[0]] == [
        (("a", "d", "f"), 1),
        (("a", "e", "f"), 1),
        (("b", "c", "d", "f"), 2),
        (("b", "c", "e", "f"), 2),
    ]


def test_too_many_readings_are_refused() -> None:
    ten = "{0|1|2|3|4|5|6|7|8|9}"
    assert len(showings(ten * 3, wildcard=True)[0]) == MOST_SHOWINGS
    with pytest.raises(ValueError, match="can be read in 1001 ways, more than 1000; give it fewer"):
        showings(f"{ten * 3}\nanother", wildcard=True)


def made(params: Mapping[str, Any], caption: str) -> Any:
    """What the kind `tokens` makes of one caption: its JSON, or the problem."""
    picture = str(Path.cwd() / "pictures" / "a.png")
    asked = work(params, {"caption": caption.encode()}, name=picture, hints={"extension": ".txt"})
    (result,) = tokens.run(asked)
    if isinstance(result, Failed):
        return str(result.problems[0])
    return json.loads(bytes(result.outputs["tokens"]))


def test_the_kind_writes_every_reading() -> None:
    def pair(tag: str) -> list[list[int]]:
        return [Tokenizer().encode(f"{tag},"), Tokenizer().encode(tag)]

    assert made({}, "a, hat ||| b") == [pair("a"), pair("hat ||| b")]
    assert made({"wildcard": True, "separator": "|||"}, "{a|b} ||| hat\nc") == {
        "lines": [[[1, 0, [pair("a"), pair("hat")]], [1, 0, [pair("b"), pair("hat")]]], [[None, 0, [pair("c")]]]]
    }
    problem = made({"wildcard": True}, "{a|b}" * 10)
    assert problem.startswith("pictures/a.txt: the caption can be read in 1024 ways")
