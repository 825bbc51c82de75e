"""The recipe as the build used it, in TOML, so that it can be read and copied."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lorac.report.content import Table
from lorac.report.markup import text

SET_DEFAULTS = {"repeats": 1, "trigger": [], "caption": "", "alpha": None, "alpha_mask": False}
"""Of a picture set's keys."""
_WIDE = 36
"""Characters of a list that still stands on one line."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED = {**{code: f"\\u{code:04x}" for code in (*range(32), 127)}, 9: "\\t", 10: "\\n", 34: '\\"', 92: "\\\\"}


def recipe_section(tables: Sequence[Table]) -> str:
    """The section, or nothing without tables. What has its default is grey."""
    blocks = "".join(_block(table) for table in tables)
    if not blocks:
        return ""
    return (
        '<section id="recipe"><h2>Recipe</h2>\n'
        '<p class="lead">The settings as this build used them; grey is what has its default.</p>\n'
        f'<div class="recipe">\n{blocks}</div></section>\n'
    )


def _block(table: Table) -> str:
    lines = [
        f'<span{_class(key in table.defaults)}><span class="key">{text(_key(key))}</span> = {text(value)}</span>'
        for key, part in table.values.items()
        if (value := toml(part)) is not None
    ]
    if not lines:
        return ""
    header = _class(all(key in table.defaults for key, value in table.values.items() if value is not None))
    joined = "\n".join([f"<b{header}>{text(table.header)}</b>", *lines])
    return f'<pre dir="auto">{joined}\n</pre>\n'


def _class(default: bool) -> str:
    return ' class="default"' if default else ""


def toml(value: Any) -> str | None:
    """A value of JSON as TOML writes it; None for what TOML cannot say, which a recipe leaves out.

    Of an absolute path only the last part: where the files of a build lie is no business of who reads the page.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value).replace("e-0", "e-")
        case str():
            return f'"{without_folder(value).translate(_ESCAPED)}"'
        case Mapping():
            pairs = [f"{_key(key)} = {shown}" for key, part in value.items() if (shown := toml(part)) is not None]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
        case list() | tuple():
            parts = [shown for part in value if (shown := toml(part)) is not None]
            flat = f"[{', '.join(parts)}]"
            return flat if len(flat) <= _WIDE else "[\n" + "".join(f"    {line},\n" for line in _filled(parts)) + "]"
        case _:
            return None


def _filled(parts: Sequence[str]) -> Iterator[str]:
    """As many parts on a line as fit."""
    line = ""
    for part in parts:
        if line and len(line) + len(part) + 2 > _WIDE:
            yield line
            line = ""
        line = f"{line}, {part}" if line else part
    if line:
        yield line


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def without_folder(value: str) -> str:
    """The name of an absolute path of either system; anything else as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() and kind(value).name:
            return kind(value).name
    return value
