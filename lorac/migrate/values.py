"""Values of kohya's files: parsed where they are text in text, converted to what the schema wants."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from lorac.migrate.draft import Draft
from lorac.recipe.diagnostics import fields, mismatch_remedy, nearest
from lorac.recipe.schema import PATHS, SECTIONS


def unknown(name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    return "kohya has no such setting and ignores it" + (f'; did you mean "{guess}"?' if guess else "")


def put(draft: Draft, at: tuple[str, str], word: str, value: Any, comment: str = "") -> None:
    """`value` as the schema's type for the key; one that does not fit is left with the schema's remedy."""
    section, key = at
    if at in PATHS and isinstance(value, str):
        _put_path(draft, at, value)
        return
    hint = fields(SECTIONS[section])[key].type
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    try:
        converted = msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        draft.leave(word, value, f"lorac cannot take it for {key} in [{section}]; {mismatch_remedy(hint, value)}")
        return
    draft.put(section, key, converted, comment)


def _put_path(draft: Draft, at: tuple[str, str], value: str) -> None:
    entry = draft.path(value, at[1])
    comment = entry.comment
    if comment and at[1] == "base" and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        comment = "a name on Hugging Face: download it and give the file"
    draft.put(*at, entry.value, comment)


def pairs(value: Any) -> dict[str, str]:
    """`["conv_dim=4", "conv_alpha=1"]`, or the same in one string, by name."""
    if isinstance(value, Mapping):
        return {str(name): str(item) for name, item in value.items() if item is not None}
    items = value if isinstance(value, list) else shlex.split(str(value))
    parts = (str(item).partition("=") for item in items)
    return {name.strip(): text.strip() for name, _, text in parts if name.strip()}


def literal(text: str) -> Any:
    """The value that kohya sees (ast.literal_eval), or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
