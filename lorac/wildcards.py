"""What a caption may hold beside tags, if the recipe allows it: a mark, {choices}, several lines. As kohya reads them.

keep_tokens_separator: in `a, b ||| c, d ||| e` the tags before the first mark and behind the second one keep their
places. enable_wildcard: `{red|blue} hair` is either, `{{` and `}}` are braces, and of several lines one is shown.
The final caption keeps all that, so that people see it; what is tokenised (`showings`) has none of it. The reference is
`BaseDataset.process_caption` of sd-scripts; unlike there, prefix, suffix and rules work on each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

from lorac.captions import Rules, apply, joined, ruled, split_tags

MOST_SHOWINGS = 1000
"""More variants of one caption than this are a mistake, or too many to tokenise."""
_CHOICE = re.compile(r"\{([^}]+)\}")
_OPEN, _CLOSE = "\0(", "\0)"
"""Stand for escaped braces while a text is taken apart; captions have no NUL."""


class Showing(NamedTuple):
    """One way to show a caption. Its first `start` tags and its last `end` keep their places.

    `start` is None without a mark, where `keep_tokens` says it.
    """

    tags: tuple[str, ...]
    start: int | None
    end: int


def final(rules: Rules, raw: str) -> str:
    """The final caption: the rules applied to each line; marks and choices are still in it."""
    if not rules.separator and not rules.wildcard:
        return joined(apply(rules, raw))
    lines = raw.split("\n") if rules.wildcard else [raw]
    return "\n".join(filter(None, (_final_line(rules, line) for line in lines)))


def showings(caption: str, separator: str = "", wildcard: bool = False) -> list[list[Showing]]:
    """All variants of each line of a final caption; at least one.

    Raises ValueError whose text is cause and remedy if there are more than `MOST_SHOWINGS`.
    """
    lines = caption.split("\n")
    if not wildcard:
        return [[_showing(line, separator)] for line in lines]
    count = sum(map(_count, lines))
    if count > MOST_SHOWINGS:
        raise ValueError(f"can be read in {count} ways, more than {MOST_SHOWINGS}; give it fewer {{choices}}")
    return [[_showing(text, separator) for text in _variants(line)] for line in lines]


def all_tags(caption: str, separator: str = "", wildcard: bool = False) -> tuple[str, ...]:
    """Each tag that some showing of a final caption has, once. Raises as `showings`."""
    tags: dict[str, str] = {}
    for line in showings(caption, separator, wildcard):
        for showing in line:
            for tag in showing.tags:
                tags.setdefault(tag.casefold(), tag)
    return tuple(tags.values())


def first_showing(text: str, separator: str = "", wildcard: bool = False) -> Showing:
    """The showing of a text that takes the first of the alternatives of each choice."""
    return _showing(next(_variants(text)) if wildcard else text, separator)


def _showing(text: str, separator: str) -> Showing:
    places: dict[str, tuple[int, str]] = {}
    parts = text.split(separator) if separator else [text]
    for number, part in enumerate(parts):
        for tag in split_tags(part):
            places.setdefault(tag.casefold(), (number, tag))
    numbers = [number for number, _ in places.values()]
    start = numbers.count(0) if len(parts) > 1 else None
    return Showing(tuple(tag for _, tag in places.values()), start, sum(number > 1 for number in numbers))


def _final_line(rules: Rules, line: str) -> str:
    """Triggers, prefix, the line's tags excluded and replaced, suffix; no plain tag twice."""
    parts: list[list[str]] = [[]]
    seen: set[str] = set()
    for tag in _tags(rules, line):
        if tag is None:
            parts.append([])
        elif _is_choice(tag, rules) or tag.casefold() not in seen:
            seen.add(tag.casefold())
            parts[-1].append(tag)
    return f" {rules.separator} ".join(map(joined, parts)).strip()


def _tags(rules: Rules, line: str) -> Iterator[str | None]:
    """Tags and choices in order, None for a mark."""
    for text, own in ((joined((*rules.trigger, rules.prefix)), False), (line, True), (rules.suffix, False)):
        for number, part in enumerate(_split(text, rules.separator, rules.wildcard) if rules.separator else [text]):
            if number:
                yield None
            for piece in _split(part, ",", rules.wildcard):
                if _is_choice(piece, rules):
                    yield from _ruled_choice(rules, piece.strip()) if own else [piece.strip()]
                else:
                    yield from ruled(rules, piece) if own else split_tags(piece)


def _ruled_choice(rules: Rules, piece: str) -> list[str]:
    """A tag with choices. If a rule names one of its variants, all are written out: `{a|b} c` is `{a c|b c}`.

    One whose text then could not be read back (a choice with a brace of its own) stays as it is.
    """
    if _count(piece) > MOST_SHOWINGS:
        return [piece]
    variants = list(_variants(piece))
    texts = [joined(ruled(rules, text)) for text in variants]
    if texts == [joined(split_tags(text)) for text in variants] or any(c in text for text in texts for c in "{}|"):
        return [piece]
    return ["{" + "|".join(texts) + "}"] if any(texts) else []


def _is_choice(piece: str, rules: Rules) -> bool:
    return rules.wildcard and ("{" in piece or "}" in piece)


def _masked(text: str) -> str:
    return text.replace("{{", _OPEN).replace("}}", _CLOSE)


def _split(text: str, mark: str, wildcard: bool) -> list[str]:
    """The parts of a text between marks that are not inside a {choice}."""
    if not wildcard:
        return text.split(mark)
    parts = [""]
    for number, piece in enumerate(re.split(r"(\{[^}]+\})", _masked(text))):
        inside = [piece] if number % 2 else piece.split(mark)
        parts[-1] += inside[0]
        parts += inside[1:]
    return [part.replace(_OPEN, "{{").replace(_CLOSE, "}}") for part in parts]


def _count(line: str) -> int:
    return prod(len(choice.split("|")) for choice in _CHOICE.findall(_masked(line)))


def _variants(line: str) -> Iterator[str]:
    """Every reading of a line, each as likely as any other when its choices are drawn one by one."""
    pieces = _CHOICE.split(_masked(line))
    options = [piece.split("|") if number % 2 else [piece] for number, piece in enumerate(pieces)]
    for chosen in product(*options):
        yield "".join(chosen).replace(_OPEN, "{").replace(_CLOSE, "}")
