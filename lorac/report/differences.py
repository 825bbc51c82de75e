"""How recipes differ: of their settings only those that are not the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorac.report.column import Column
from lorac.report.markup import text
from lorac.report.recipe import SET_DEFAULTS, toml

_SHORT = 24
"""Characters of a setting that has room in a table."""


def settings_section(columns: Sequence[Column]) -> str:
    """The section, or nothing where all are alike: short values in a table, long ones as lists of who has them."""
    keys = list(dict.fromkeys(key for column in columns for key in column.settings))
    shown = {key: [_setting(column.settings.get(key)) for column in columns] for key in keys}
    differing = {key: values for key, values in shown.items() if len(set(values)) > 1}
    if not differing:
        return ""
    short = {key: values for key, values in differing.items() if max(map(len, values)) <= _SHORT}
    long = "".join(_grouped(columns, key, values) for key, values in differing.items() if key not in short)
    return (
        '<section id="settings"><h2>Settings</h2>\n<p class="lead">Of how the LoRAs are made, drawn and judged, what '
        f"differs; all else is the same.</p>\n{_table(columns, short)}{long}</section>\n"
    )


def _setting(value: Any) -> str:
    """As a recipe writes it, but for the quotation marks of a text that stands alone."""
    if value is None or value in ("", [], {}, ()):
        return "–"
    shown = toml(value) or "–"
    return shown[1:-1] if isinstance(value, str) else shown


def _table(columns: Sequence[Column], values: Mapping[str, Sequence[str]]) -> str:
    if not values:
        return ""
    rows = []
    for place, column in enumerate(columns):
        cells = "".join(f"<td>{text(own[place])}</td>" for own in values.values())
        rows.append(f'<tr><th scope="row">{column.link}</th>{cells}</tr>\n')
    heads = "".join(f'<th scope="col">{_wrapping(key)}</th>' for key in values)
    return (
        '<div class="scroll"><table class="overview differing"><thead><tr><th scope="col">Recipe</th>'
        f"{heads}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _wrapping(key: str) -> str:
    return text(key).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _grouped(columns: Sequence[Column], key: str, values: Sequence[str]) -> str:
    groups: dict[str, list[str]] = {}
    for column, value in zip(columns, values, strict=True):
        groups.setdefault(value, []).append(text(column.name))
    parts = "".join(
        f"<dt>{', '.join(names)}</dt><dd><pre>{text(value)}</pre></dd>\n" for value, names in groups.items()
    )
    return f'<h3>{_wrapping(key)}</h3>\n<dl class="values">{parts}</dl>\n'


def flattened(
    settings: Mapping[str, Mapping[str, Any]],
    folders: Sequence[Mapping[str, Any]],
    sets: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, Any]]:
    """The settings by dotted name. First the picture sets as the recipe writes them, without what has its default;
    `folders` say of each whether it is for regularisation."""
    for kind, regularisation in (("[[source]]", False), ("[[regularisation]]", True)):
        yield (
            kind,
            [
                {key: value for key, value in written.items() if SET_DEFAULTS.get(key, ...) != value}
                for folder, written in zip(folders, sets, strict=True)
                if folder["regularisation"] is regularisation
            ],
        )
    for section, values in settings.items():
        for key, value in values.items():
            if (section, key) != ("sample", "prompts"):
                yield f"{section}.{key}", json.loads(json.dumps(value))
