"""On which line of a TOML text each key stands.

tomli gives values without places, and a message without a line is half a message. This scanner runs on a text that
tomli has already accepted, so it only has to find keys, not to judge values (TOML 1.0, and 1.1's multi-line inline
tables).
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence

import tomli

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")
# A multi-line string may end in up to two quotes of its own before the three closing ones.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\])*"|' r"'[^']*'",
    re.DOTALL,
)
_PART = re.compile(r"""("(?:\\.|[^"\\])*"|'[^']*')|([^.\[\]"']+)|\[(\d+)\]""")


def positions(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key and every array element of a valid TOML text.

    A table's line is that of its header, or of the first dotted key that made it.
    """
    return _Scanner(text).run()


def dotted(path: KeyPath) -> str:
    """A key path as one writes it: `source[0].path`, `matrix."network.alpha"`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{word}" if text else word
    return text


def parse_dotted(text: str) -> KeyPath:
    """The inverse of `dotted`; raises ValueError for a text that is no dotted key."""
    parts: list[str | int] = []
    at = 0
    while at < len(text):
        if parts and text[at] == ".":
            at += 1
        elif parts and text[at] != "[":
            raise ValueError(text)
        found = _PART.match(text, at)
        if found is None or (found[3] is not None and not parts):
            raise ValueError(text)
        quoted, bare, index = found.groups()
        if index is not None:
            parts.append(int(index))
        else:
            parts.append(bare.strip() if bare is not None else _unquoted(quoted))
        at = found.end()
    if not parts or text.endswith("."):
        raise ValueError(text)
    return tuple(parts)


class _Scanner:
    """One walk over the text; `at` is the offset of the next character to read."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        self.lines: dict[KeyPath, int] = {}
        self.elements: dict[KeyPath, int] = {}

    def run(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.lines

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def mark(self, path: KeyPath, at: int) -> None:
        self.lines.setdefault(path, bisect_right(self.starts, at))

    def header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`; the path of what follows, with the index of each array of tables in it."""
        array = self.text.startswith("[[", self.at)
        self.at += 2 if array else 1
        keys, places = self.keys()
        self.at += 2 if array else 1
        path: KeyPath = ()
        for i, (key, place) in enumerate(zip(keys, places, strict=True)):
            path = (*path, key)
            self.mark(path, place)
            if array and i == len(keys) - 1:
                self.elements[path] = self.elements.get(path, -1) + 1
            if path in self.elements:
                path = (*path, self.elements[path])
                self.mark(path, place)
        return path

    def pair(self, table: KeyPath) -> None:
        """`a.b = value` inside `table`."""
        keys, places = self.keys()
        self.at += 1
        path = table
        for key, place in zip(keys, places, strict=True):
            path = (*path, key)
            self.mark(path, place)
        self.skip(_SPACE)
        self.value(path)

    def keys(self) -> tuple[Sequence[str], Sequence[int]]:
        """A dotted key and the offsets of its parts; ends at `=` or `]`."""
        keys, places = [], []
        while True:
            self.skip(_SPACE)
            places.append(self.at)
            if self.text[self.at] in "\"'":
                start = self.at
                self.skip(_STRING)
                keys.append(_unquoted(self.text[start : self.at]))
            else:
                start = self.at
                self.skip(_BARE)
                keys.append(self.text[start : self.at])
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return keys, places
            self.at += 1

    def value(self, path: KeyPath) -> None:
        first = self.text[self.at]
        if first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        elif first in "\"'":
            self.skip(_STRING)
        else:
            self.skip(_SCALAR)

    def array(self, path: KeyPath) -> None:
        self.at += 1
        self.skip(_BLANK)
        index = 0
        while self.text[self.at] != "]":
            self.mark((*path, index), self.at)
            self.value((*path, index))
            index += 1
            self.skip_comma()
        self.at += 1

    def inline_table(self, path: KeyPath) -> None:
        self.at += 1
        self.skip(_BLANK)
        while self.text[self.at] != "}":
            self.pair(path)
            self.skip_comma()
        self.at += 1

    def skip_comma(self) -> None:
        self.skip(_BLANK)
        if self.text[self.at] == ",":
            self.at += 1
            self.skip(_BLANK)


def _unquoted(key: str) -> str:
    return next(iter(tomli.loads(f"{key} = 0")))
