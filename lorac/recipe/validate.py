"""Turn TOML values into the schema's structs and list everything that does not fit, not only the first thing."""

from __future__ import annotations

import math
import types
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec

from lorac.recipe.diagnostics import fields, given, meant_key, mismatch_remedy, named, unknown_key_remedy
from lorac.recipe.fields import Section
from lorac.recipe.places import Finding
from lorac.recipe.positions import KeyPath
from lorac.recipe.schema import Document

_S = TypeVar("_S", bound=Section)


def read_document(data: dict[str, Any]) -> tuple[Document, list[Finding]]:
    """The recipe in `data` and what is wrong with it. Wrong values are absent from the document, so that what
    is right can still be checked further."""
    document, findings = read_section(Document, data)
    assert document is not None, "every section of a recipe may be absent"
    return document, findings


def read_section(kind: type[_S], table: dict[str, Any]) -> tuple[_S | None, list[Finding]]:
    """The struct that a whole file is, None where a key without default is missing, and what is wrong with it."""
    findings: list[Finding] = []
    return cast("_S | None", _read_section(kind, table, (), findings)), findings


def _read_section(kind: type[Section], table: dict[str, Any], path: KeyPath, found: list[Finding]) -> Section | None:
    """The struct of a table, built from the values that fit; None if a key without default is missing."""
    known = fields(kind)
    for key in table:
        if key not in known:
            meant = meant_key(key, kind)
            cause = f'unknown key "{key}" in {named(path, "of")}' if path else f'unknown key "{key}"'
            found.append(Finding((*path, key), cause, unknown_key_remedy(key, kind, meant), meant))
    values = {}
    complete = True
    for name, field in known.items():
        if name in table:
            before = len(found)
            value = _read_value(field.type, table[name], (*path, name), found)
            if len(found) == before or value is not None:
                values[name] = value
            else:
                complete = complete and not field.required
        elif field.required:
            complete = False
            found.append(Finding(path, f"{named(path)} has no {name}", f'add {name} = "…"'))
    return kind(**values) if complete else None


def _read_value(hint: Any, value: object, path: KeyPath, found: list[Finding]) -> object:
    """`value` converted to the type `hint`, element by element, so that each wrong one is found on its own line."""
    before = len(found)
    section, item, entry = _structure(hint)
    if section is not None and isinstance(value, dict):
        return _read_section(section, value, path, found)
    if item is not None and isinstance(value, list):
        items = [_read_value(item, element, (*path, i), found) for i, element in enumerate(value)]
        if _structure(item)[0] is not None:
            return tuple(element for element in items if element is not None)
    if entry is not None and isinstance(value, dict):
        for key, inner in value.items():
            _read_value(entry, inner, (*path, key), found)
    if len(found) > before:
        return None
    try:
        converted: object = msgspec.convert(value, hint)
    except msgspec.ValidationError:
        found.append(_misfit(hint, value, path))
        return None
    if isinstance(converted, float) and not math.isfinite(converted):
        found.append(Finding(path, f"{named(path)} is {given(value)}", "give a finite number"))
        return None
    return converted


def _misfit(hint: Any, value: object, path: KeyPath) -> Finding:
    section, item, _ = _structure(hint)
    name = path[-1]
    if len(path) == 1 and isinstance(value, dict) and item is not None:
        return Finding(path, f"[{name}] is one table where several may stand", f"write [[{name}]]")
    if len(path) == 1 and isinstance(value, list) and section is not None:
        return Finding(path, f"[[{name}]] is a list where one table stands", f"write [{name}]")
    if isinstance(value, list) and not value:
        return Finding(path, f"{named(path)} is empty", mismatch_remedy(hint, value))
    return Finding(path, f"{named(path)} is {given(value)}", mismatch_remedy(hint, value))


def _structure(hint: Any) -> tuple[type[Section] | None, Any, Any]:
    """The parts of a type that are read one by one: the section in it, a list's item type, a table's value type."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _structure(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        section, item, entry = None, None, None
        for part in map(_structure, get_args(hint)):
            section, item, entry = section or part[0], item or part[1], entry or part[2]
        return section, item, entry
    if origin is tuple and get_args(hint)[-1] is Ellipsis:
        return None, get_args(hint)[0], None
    if origin is dict:
        return None, None, get_args(hint)[1]
    return (hint if isinstance(hint, type) and issubclass(hint, Section) else None), None, None
