"""All keys of a recipe as a page of Markdown, made from the same table that validates them: `recipes/KEYS.md`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from lorac.recipe import presets
from lorac.recipe.collection import Listing
from lorac.recipe.diagnostics import bracketed, fields, in_words
from lorac.recipe.fields import Section
from lorac.recipe.schema import SECTIONS, Document, keys
from lorac.recipe.sections.output import Prompt

HEAD = """# The keys of a recipe

Made by `lorac schema --markdown`. Keys have the names that sd-scripts (kohya) has for them, or else the table says its
name. An empty default means that the key is absent, and what that means is said beside it. Lengths are pixels, and
learning rates are per optimiser step. The last column is the name under which the written LoRA tells the value.
"""
PRESETS = """`preset = "kohya-2023"` takes what the article's trainer set by itself, `preset = "modern"` what one takes
today; whatever the recipe says wins. One thing of that time no preset repeats: sd-scripts also enlarged with
OpenCV's INTER_AREA, and lorac enlarges with Lanczos, as sd-scripts does today.
"""
COLUMNS = ("key", "value", "default", "kohya's name", "what it does", "in the file")


def markdown() -> str:
    """The whole page."""
    before = {name: about for name, about in keys(Document).items() if name not in SECTIONS}
    parts = [HEAD, *_part("Before the sections", Document, before)]
    for name, section in SECTIONS.items():
        parts += _part(f"`{bracketed(name)}`", section, keys(section))
        if name == "sample":
            parts += _part("A table in `prompts` of `[sample]`", Prompt, keys(Prompt))
    parts += _part("A collection of recipes", Listing, keys(Listing))
    parts += ["## Presets\n", PRESETS, presets.markdown()]
    return "\n".join(parts)


def _part(title: str, section: type[Section], told: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A heading, what the section is for, and its table."""
    doc = inspect.getdoc(section) or ""
    yield f"## {title}\n\n{doc}\n" if section is not Document else f"## {title}\n"
    yield _row(COLUMNS)
    yield _row(["---"] * len(COLUMNS))
    for name, about in told.items():
        does = about["description"] + (f" <br>*{about['source']}*" if about["source"] else "")
        kohya, told_as = (f"`{about[word]}`" if about[word] else "" for word in ("kohya", "metadata"))
        field = fields(section)[name]
        yield _row([f"`{name}`", in_words(field.type), _default(field), kohya, does, told_as])
    yield ""


def _default(field: msgspec.structs.FieldInfo) -> str:
    """As a recipe would write it."""
    if field.required:
        return "needed"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
