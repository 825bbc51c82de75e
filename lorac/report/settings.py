"""The recipe's settings as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lorac.report.markup import text


def settings_section(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The section, or nothing without settings.

    Left out are keys without a value, and the prompts, which stand beside the samples.
    """
    tables = "".join(_table(name, section) for name, section in settings.items())
    if not tables:
        return ""
    return f'<section id="settings"><h2>Settings</h2>\n<div class="settings">\n{tables}</div></section>\n'


def _table(name: str, section: Mapping[str, Any]) -> str:
    values = {key: setting(value) for key, value in section.items() if (name, key) != ("sample", "prompts")}
    rows = "".join(
        f'<tr><th scope="row">{text(key).replace("_", "_<wbr>")}</th><td dir="auto">{text(value)}</td></tr>\n'
        for key, value in values.items()
        if value
    )
    if not rows:
        return ""
    return f"<table><caption>{text(name)}</caption>\n<tbody>{rows}</tbody></table>\n"


def setting(value: Any) -> str:
    """A value much as a recipe writes it, without quotes; lists of phrases have a line for each.

    Of an absolute path only the last part: where the files of a build lie is no business of who reads the page.
    """
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value).removesuffix(".0").replace("e-0", "e-")
        case str():
            return without_folder(value)
        case Mapping():
            return "\n".join(f"{key} → {setting(part)}" for key, part in value.items())
        case list() | tuple():
            parts = [setting(part) for part in value]
            return ("\n" if any("," in part or "\n" in part for part in parts) else ", ").join(parts)
        case _:
            return str(value)


def without_folder(value: str) -> str:
    """The name of an absolute path of either system; anything else as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() and kind(value).name:
            return kind(value).name
    return value
