"""How the engine puts things into words: columns, times, and the values of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias
from unicodedata import east_asian_width

Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"
"""A value of a manifest: what is not a list or a table is its text."""

LONGEST = 60
"""Characters of a value that are shown."""


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: int) -> str:
    """`222 B`, `5.9 MB`: decimal units, as file managers of most systems show them."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"


def width(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese and Japanese letters are two columns wide."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def padded(text: str, columns: int) -> str:
    """The text and as many spaces as make it `columns` wide."""
    return text + " " * (columns - width(text))


def differences(old: str, new: str, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(place, old, new) of every part in which two texts of a manifest differ, down to where they are of one form."""
    try:
        yield from _compare(_parsed(old), _parsed(new), name)
    except ValueError:  # a manifest of another version of lorac
        yield name, shown(old), shown(new)


def _compare(old: Plain, new: Plain, name: str) -> Iterator[tuple[str, str, str]]:
    if old == new:
        return
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True), start=1):
            yield from _compare(before, after, f"{name} {index}")
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _compare(old.get(key, "(absent)"), new.get(key, "(absent)"), f"{name}.{key}")
    else:
        yield name, shown(old), shown(new)


def shown(value: Plain) -> str:
    """A value as a recipe would have it, cut when it is long."""
    text = _written(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _written(value: Plain) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_written(inner)}' for key, inner in value.items())}}}"
    if value.startswith(("0x", "-0x")):
        return f"{float.fromhex(value):g}"
    return "(not set)" if value == "none" else value


def _parsed(text: str) -> Plain:
    """The reverse of how `digest` writes values: `[2: 1:a, 1:b]` is a list, `{1: 1:k=1:v}` a table."""
    if not text.startswith(("[", "{")):
        return text
    count, _, rest = text[1:-1].partition(": ")
    items: list[Plain] = []
    keys: list[str] = []
    for _ in range(int(count)):
        if text[0] == "{":
            key, rest = _frame(rest)
            keys.append(key)
            rest = rest[1:]  # "="
        part, rest = _frame(rest)
        items.append(_parsed(part))
        rest = rest.removeprefix(", ")
    return dict(zip(keys, items, strict=True)) if text[0] == "{" else items


def _frame(text: str) -> tuple[str, str]:
    """A part behind its length, and what follows."""
    length, _, rest = text.partition(":")
    return rest[: int(length)], rest[int(length) :]


def listed(names: Sequence[str], most: int) -> str:
    """`a, b, c and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
