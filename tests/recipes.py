"""Recipes as data, for tests that change one value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe: section -> values, or a list of tables for `[[source]]`."""
    lines = []
    for section, value in recipe.items():
        for table in value if isinstance(value, list) else [value]:
            lines.append(f"[[{section}]]" if isinstance(value, list) else f"[{section}]")
            lines += [f"{key} = {_value(item)}" for key, item in table.items()]
    return "\n".join(lines)


def _value(value: Any) -> str:
    """JSON's strings, numbers and booleans are TOML's, too; tables are not."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
