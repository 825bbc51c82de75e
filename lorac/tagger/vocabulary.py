"""What a tagger's outputs mean (`selected_tags.csv`), and the tags that its probabilities come to.

Probabilities are kept as they came out of the model: 32-bit floats, little-endian, one for each row of the table.
"""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from lorac.captions import joined, normal
from lorac.errors import InputError, Problem

HEADER = ["tag_id", "name", "category", "count"]
RATING, CHARACTER = 9, 4
"""Categories of the table; 0 is general, and what has another number is treated like it."""


@dataclass(frozen=True)
class Tag:
    """A row of the table: the name as danbooru writes it, with underscores."""

    name: str
    category: int


@dataclass(frozen=True)
class Thresholds:
    """Probabilities from which a tag is taken."""

    general: float
    character: float

    def of(self, tag: Tag) -> float:
        return self.character if tag.category == CHARACTER else self.general


def read_tags(data: bytes, where: str) -> tuple[Tag, ...]:
    """The rows of a selected_tags.csv, in the order of the model's outputs. Raises InputError."""
    remedy = "take both files of the tagger from the same place"
    try:
        header, *rows = [row for row in csv.reader(data.decode("utf-8-sig").splitlines()) if row]
    except (UnicodeDecodeError, csv.Error, ValueError):
        raise InputError([Problem(where, "is no table of tags", remedy)]) from None
    if header != HEADER:
        cause = f"begins with {','.join(header)[:80]} and not with {','.join(HEADER)}"
        raise InputError([Problem(where, cause, remedy)])
    problems = [
        Problem(f"{where}:{number}", "a row has a name and the number of a category", remedy)
        for number, row in enumerate(rows, 2)
        if len(row) != len(HEADER) or not row[1].strip() or not row[2].strip().isdecimal()
    ]
    if problems:
        raise InputError(problems[:5])
    return tuple(Tag(row[1], int(row[2])) for row in rows)


def as_bytes(probabilities: Sequence[float]) -> bytes:
    """What is stored."""
    return _turned(array("f", probabilities)).tobytes()


def from_bytes(data: bytes) -> array[float]:
    """What was stored."""
    found = array("f")
    found.frombytes(data)
    return _turned(found)


def _turned(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


def chosen(tags: Sequence[Tag], probabilities: Sequence[float], thresholds: Thresholds) -> list[str]:
    """The names, in normal form, of the tags that reach their threshold: the likeliest first, equal ones in the
    table's order. Ratings are never among them."""
    pairs = zip(tags, probabilities, strict=True)
    found = [(tag, p) for tag, p in pairs if tag.category != RATING and p >= thresholds.of(tag)]
    return [normal(tag.name) for tag, _ in sorted(found, key=lambda pair: -pair[1])]


def caption(tags: Sequence[Tag], probabilities: bytes, thresholds: Thresholds) -> str:
    """The same as a text, like that of a hand-written file."""
    return joined(chosen(tags, from_bytes(probabilities), thresholds))
