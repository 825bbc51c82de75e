"""A recipe in the making: its values, each with a comment, and what could not be carried over; and its text as TOML."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from lorac.listing import exists
from lorac.recipe.diagnostics import bracketed
from lorac.recipe.schema import SECTIONS

COMMENT_COLUMN, WIDTH = 36, 118
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class Entry:
    """A value of the recipe and what the user is told beside it."""

    value: Any
    comment: str = ""


@dataclass(frozen=True)
class Leftover:
    """A setting that is not in the recipe, and why, or what to do instead."""

    name: str
    value: Any
    why: str


@dataclass
class Draft:
    """`folder` is that of the recipe, from which its paths start; `near` that of what is read, whose paths may start
    there. `warnings` are for the user's eyes at once, without the recipe."""

    folder: Path
    near: Path
    head: list[str] = field(default_factory=list)
    preset: Entry | None = None
    sources: list[dict[str, Entry]] = field(default_factory=list)
    regularisation: list[dict[str, Entry]] = field(default_factory=list)
    sections: dict[str, dict[str, Entry]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    leftovers: list[Leftover] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def put(self, section: str, key: str, value: Any, comment: str = "") -> None:
        self.sections.setdefault(section, {})[key] = Entry(value, comment)

    def get(self, section: str, key: str) -> Any:
        entry = self.sections.get(section, {}).get(key)
        return None if entry is None else entry.value

    def leave(self, name: str, value: Any, why: str) -> None:
        self.leftovers.append(Leftover(name, value, why))

    def find(self, text: str) -> Path | None:
        """The file or folder that a path in what is read means, if it is on this machine."""
        if "\0" in text:
            return None
        places = (Path(os.path.normpath(start / text)) for start in (self.near.absolute(), Path.cwd()))
        return next((place for place in places if exists(place)), None)

    def path(self, text: str, what: str) -> Entry:
        """A path as the recipe writes it: relative where it is near, with `/`; one that is not here as it was."""
        found = self.find(text)
        if found is not None:
            return Entry(self.relative(found))
        if _WINDOWS.match(text):
            text = text.replace("\\", "/")
        self.warnings.append(f'{what} "{text}" is not on this machine; correct it in the recipe')
        return Entry(text, "not on this machine: correct it")

    def relative(self, found: Path) -> str:
        try:
            text = Path(os.path.relpath(found, self.folder.absolute())).as_posix()
        except ValueError:  # another drive of Windows
            return found.as_posix()
        return found.as_posix() if text.startswith("../../../") else text

    def data(self) -> dict[str, Any]:
        """The values as tomli would give them."""
        tables: dict[str, Any] = {} if self.preset is None else {"preset": self.preset.value}
        for name, entries in (("source", self.sources), ("regularisation", self.regularisation)):
            if entries:
                tables[name] = [{key: _plain(entry.value) for key, entry in table.items()} for table in entries]
        for name, section in self.sections.items():
            tables[name] = {key: _plain(entry.value) for key, entry in section.items()}
        return tables


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def render(draft: Draft) -> str:
    """The recipe's text."""
    blocks = [[f"# {line}".rstrip() for line in draft.head]]
    if draft.preset is not None:
        blocks[0] += _lines({"preset": draft.preset})
    for name, tables in (("source", draft.sources), ("regularisation", draft.regularisation)):
        blocks += [[bracketed(name), *_lines(table)] for table in tables]
        blocks.append(_remarks(draft, name))
    for name, kind in SECTIONS.items():
        entries = draft.sections.get(name, {})
        order = {field.name: entries[field.name] for field in msgspec.structs.fields(kind) if field.name in entries}
        if order:
            blocks.append([f"[{name}]", *_lines(order)])
            blocks[-1] += _remarks(draft, name)
    if draft.leftovers:
        blocks.append(["# Not carried over:", *map(_leftover, draft.leftovers)])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _remarks(draft: Draft, name: str) -> list[str]:
    return [f"# {line}".rstrip() for line in draft.remarks.get(name, [])]


def _lines(entries: dict[str, Entry]) -> list[str]:
    lines = []
    for key, entry in entries.items():
        line, comment = f"{key} = {toml(entry.value)}", _one_line(entry.comment)
        if len(line) > WIDTH and isinstance(entry.value, list | tuple):
            line = "\n".join([f"{key} = [", *_wrapped([f"{toml(item)}," for item in entry.value]), "]"])
        if not comment:
            lines.append(line)
        elif "\n" not in line and max(len(line), COMMENT_COLUMN - 1) + 3 + len(comment) <= WIDTH:
            lines.append(f"{line:<{COMMENT_COLUMN - 1}} # {comment}")
        else:
            lines += [f"# {comment}", line]
    return lines


def _wrapped(items: list[str]) -> list[str]:
    """The elements of a list as indented lines, as many in each as fit."""
    lines = ["   "]
    for item in items:
        if len(lines[-1]) + 1 + len(item) > WIDTH and lines[-1].strip():
            lines.append("   ")
        lines[-1] += f" {item}"
    return lines


def _leftover(leftover: Leftover) -> str:
    return f"#   {_one_line(leftover.name)} = {toml(leftover.value)}: {_one_line(leftover.why)}"


def _one_line(text: str) -> str:
    """Text that a TOML comment may hold: no control characters."""
    return "".join(char if char.isprintable() or char == "\u3000" else " " for char in text).strip()


def toml(value: Any) -> str:
    """A value as TOML; what TOML has no word for, as JSON (it stands in comments only)."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _number(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{_key(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False)


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else toml(text)


def _number(value: float) -> str:
    """`0.0001` as `1e-4`, everything else as Python writes it."""
    if value != value or abs(value) == float("inf"):
        return str(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    scale = int(exponent) + len(digits) - 1
    if not value or -4 < scale < 16:
        return repr(value)
    fraction = "".join(map(str, digits[1:]))
    return f"{'-' if sign else ''}{digits[0]}{'.' + fraction if fraction else ''}e{scale}"
