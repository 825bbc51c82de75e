"""The line of every key: hypothesis writes TOML in all its layouts, tomli says which keys there are."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from lorac.recipe.positions import KeyPath, dotted, parse_dotted, positions

EXAMPLE = """\
#:schema x.json
extends = "a.toml"
[[source]]
path = "a" # [not.a.table]
[[source]]
path = 'b'
trigger = [
    "one", # path = 1
    "two",
]
[matrix]
"network.alpha" = [1, 128]
train.seed = [1]
[caption.replace]
"a=b" = '''
[x]
y = 1'''
[sample]
prompts = [{ prompt = "a", negative = "]" },
  { prompt = \"\"\"b\\""\"\"\"\" }]
seed = 3
"""


def test_example() -> None:
    lines = {dotted(path): line for path, line in positions(EXAMPLE).items()}
    assert lines == {
        "extends": 2,
        "source": 3,
        "source[0]": 3,
        "source[0].path": 4,
        "source[1]": 5,
        "source[1].path": 6,
        "source[1].trigger": 7,
        "source[1].trigger[0]": 8,
        "source[1].trigger[1]": 9,
        "matrix": 11,
        'matrix."network.alpha"': 12,
        'matrix."network.alpha"[0]': 12,
        'matrix."network.alpha"[1]': 12,
        "matrix.train": 13,
        "matrix.train.seed": 13,
        "matrix.train.seed[0]": 13,
        "caption": 14,
        "caption.replace": 14,
        'caption.replace."a=b"': 15,
        "sample": 18,
        "sample.prompts": 19,
        "sample.prompts[0]": 19,
        "sample.prompts[0].prompt": 19,
        "sample.prompts[0].negative": 19,
        "sample.prompts[1]": 20,
        "sample.prompts[1].prompt": 20,
        "sample.seed": 21,
    }


KEYS = st.one_of(st.sampled_from(["a", "b", "source", "x-1", "0"]), st.text("ab.=#[]'\"\\ é\t", max_size=4))
SCALARS = st.one_of(
    st.integers(-9, 9).map(str),
    st.sampled_from(["true", "1e-4", "inf", "1979-05-27 07:32:00Z", "0x1F", "''", '""', "''''''", '""""""']),
    st.text('ab\\"\n#[]{}=,', max_size=8).map(lambda text: json.dumps(text)),
    st.text("ab#[]{}=,\n\"'", max_size=8).filter(lambda text: "'''" not in text).map(lambda text: f"'''{text}'''"),
    st.text("ab#[]{}=,\n\"'", max_size=8).filter(lambda text: '"""' not in text).map(lambda text: f'"""{text}"""'),
)
BREAK = st.sampled_from(["", " ", "\n", ' # c ] , = "\n  ', "\n\n\t"])


@st.composite
def key(draw: st.DrawFn) -> str:
    """A key as it may be written: bare, basic or literal string."""
    word = draw(KEYS)
    forms = [json.dumps(word, ensure_ascii=draw(st.booleans())).replace("\t", "\\t")]
    if word and all(c.isascii() and (c.isalnum() or c in "_-") for c in word):
        forms.append(word)
    if "'" not in word:
        forms.append(f"'{word}'")
    return draw(st.sampled_from(forms))


@st.composite
def array(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    text = "[" + draw(BREAK)
    for value in draw(st.lists(values, max_size=3)):
        text += value + draw(BREAK) + "," + draw(BREAK)
    return text + "]"


@st.composite
def inline(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(key(), values), max_size=3, unique_by=lambda pair: _word(pair[0])))
    return "{" + ", ".join(f"{name} = {value}" for name, value in pairs) + "}"


VALUES = st.recursive(SCALARS, lambda inner: st.one_of(array(inner), inline(inner)), max_leaves=6)


@st.composite
def line(draw: st.DrawFn) -> str:
    name = ".".join(draw(st.lists(key(), min_size=1, max_size=3)))
    if draw(st.booleans()):
        return f"{name} = {draw(VALUES)}"
    return draw(st.sampled_from([f"[{name}]", f" [ {name} ] # t", f"[[{name}]]", f"[[ {name} ]]", "", "# x = 1"]))


@st.composite
def documents(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(["\n", "\r\n"])).join(draw(st.lists(line(), max_size=8)))


def _word(written: str) -> str:
    return next(iter(tomli.loads(f"{written} = 0")))


def paths(value: Any, at: KeyPath = ()) -> set[KeyPath]:
    """Every key and element that tomli sees."""
    found = {at} if at else set()
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found.union(*(paths(inner, (*at, key)) for key, inner in entries))


def valid(text: str) -> bool:
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(documents().filter(valid))
def test_every_key_has_the_line_it_stands_on(text: str) -> None:
    found = positions(text)
    assert set(found) == paths(tomli.loads(text))
    lines = text.replace("\r\n", "\n").split("\n")
    for path, line in found.items():
        if isinstance(path[-1], str):
            spellings = (path[-1], json.dumps(path[-1])[1:-1], json.dumps(path[-1], ensure_ascii=False)[1:-1])
            assert any(spelling in lines[line - 1] for spelling in spellings), (path, line)


@given(
    st.lists(st.one_of(KEYS, st.integers(0, 12)), min_size=1, max_size=4).filter(lambda path: isinstance(path[0], str))
)
def test_dotted_keys_survive_the_round_trip(parts: list[str | int]) -> None:
    assert parse_dotted(dotted(tuple(parts))) == tuple(parts)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "[0]", "a[x]", 'a"b"', "a..b", 'a."', "a[0]b"])
def test_what_is_no_dotted_key(text: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        parse_dotted(text)
