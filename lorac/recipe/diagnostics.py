"""Wording of recipe problems: what was given, what is wanted, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from lorac.errors import Problem
from lorac.listing import exists, shown_path
from lorac.recipe.fields import Section
from lorac.recipe.positions import KeyPath, dotted
from lorac.recipe.schema import SECTIONS, Document

KEYS_SHOWN = 16
"""Most keys of a section that a message lists."""


def line_order(problem: Problem) -> tuple[str, int]:
    """Sorts the problems of one file by their lines."""
    label, _, line = problem.where.rpartition(":")
    return (label, int(line)) if line.isdecimal() else (problem.where, 0)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a typing error would turn into `word`, if any is near enough."""
    by_fold = {candidate.casefold(): candidate for candidate in candidates}
    close = get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[close[0]] if close else None


def missing_path_remedy(path: Path, asking: str = "") -> str:
    """The remedy for a path that does not exist: the sibling that was probably meant, or where the path breaks off.

    `asking` is the file, as shown, that names the path and so is not meant by it.
    """
    missing = path
    while not exists(missing.parent):
        missing = missing.parent
    try:
        names = sorted(entry.name for entry in missing.parent.iterdir() if shown_path(entry) != asking)
    except OSError:
        names = []
    guess = nearest(missing.name, names)
    if guess is None:
        parent = shown_path(missing.parent)
        return f'there is no "{missing.name}" in {"the current folder" if parent == "." else parent}'
    meant = missing.parent / guess / path.relative_to(missing)
    return f'did you mean "{shown_path(meant if exists(meant) else missing.parent / guess)}"?'


@cache
def fields(section: type[Section]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """The keys of a section; `type` is the annotation."""
    return {field.name: field for field in msgspec.structs.fields(section)}


@cache
def kohya_names(section: type[Section]) -> Mapping[str, str]:
    """kohya's names of a section's keys, where they differ: `network_dim` -> `dim`."""
    words = {name: _extra(inspect.type_info(field.type)).get("kohya") for name, field in fields(section).items()}
    return {kohya: name for name, kohya in words.items() if kohya}


def bracketed(section: str) -> str:
    """A section as its header is written: `[train]`, `[[source]]`."""
    return f"[[{section}]]" if section in ("source", "regularisation") else f"[{section}]"


def named(path: KeyPath, joint: str = "in") -> str:
    """A key as a sentence names it: `seed in [train]`, `prompts[1].negative in [sample]`, `[[source]]`."""
    section, *rest = path
    if rest and isinstance(rest[0], int):
        rest = rest[1:]
    header = bracketed(str(section)) if section in SECTIONS else str(section)
    return f"{dotted(tuple(rest))} {joint} {header}" if rest else header


def meant_key(key: str, section: type[Section]) -> KeyPath | None:
    """Where the writer of an unknown `key` in `section` probably wanted to go: `("train", "seed")`, or None.

    The same word in another section comes first, then a similar word here, then a similar word elsewhere.
    """
    own_name = next((name for name, kind in SECTIONS.items() if kind is section), None)
    own: KeyPath = () if own_name is None else (own_name,)
    others = {name: kind for name, kind in SECTIONS.items() if kind is not section}
    if key in kohya_names(section):
        return (*own, kohya_names(section)[key])
    for name, kind in others.items():
        if key in fields(kind) or key in kohya_names(kind):
            return (name, kohya_names(kind).get(key, key))
    guess = nearest(key, [*fields(section), *kohya_names(section)])
    if guess is not None:
        return (*own, kohya_names(section).get(guess, guess))
    for name, kind in others.items():
        guess = nearest(key, [*fields(kind), *kohya_names(kind)])
        if guess is not None and len(key) > 3:
            return (name, kohya_names(kind).get(guess, guess))
    return None


def unknown_key_remedy(key: str, section: type[Section], meant: KeyPath | None) -> str:
    """The remedy for an unknown key, given what `meant_key` found."""
    if meant is None:
        known = fields(section)
        return f"known here: {', '.join(known)}" if len(known) <= KEYS_SHOWN else "`lorac schema` lists the keys"
    word = str(meant[-1])
    here = len(meant) == 1 or SECTIONS[str(meant[0])] is section
    if here:
        is_section = section is Document and word in SECTIONS
        return f"did you mean {bracketed(word) if is_section else chr(34) + word + chr(34)}?"
    header = bracketed(str(meant[0]))
    return f"it belongs in {header}" if word == key else f'did you mean "{word}" in {header}?'


def given(value: object) -> str:
    """A TOML value in words: `the string "fast"`, `the number 0.5`, `a list`."""
    match value:
        case bool():
            return "true" if value else "false"
        case "":
            return "an empty string"
        case str():
            return f'the string "{value}"' if len(value) <= 60 else "a long string"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a table"
    return "a date or time"


def mismatch_remedy(hint: Any, value: object) -> str:
    """The remedy for a value that is not of the type `hint`."""
    kind = inspect.type_info(hint)
    for part in _parts(kind):
        if isinstance(part, inspect.LiteralType) and isinstance(value, str):
            guess = nearest(value, [str(choice) for choice in part.values])
            if guess is not None:
                return f'did you mean "{guess}"?'
        if isinstance(part, inspect.VarTupleType) and isinstance(value, str):
            return f'write a list: ["{value}"]'
    return f"give {_wanted(kind)}"


def in_words(hint: Any) -> str:
    """The type of a key in words."""
    return _wanted(inspect.type_info(hint))


def _wanted(kind: inspect.Type) -> str:
    """A type in words: `a number greater than 0`, `"ddim" or "euler_a"`, `a list, each element a string`."""
    if words := _extra(kind).get("wanted"):
        return str(words)
    match kind:
        case inspect.Metadata(type=inner):
            return _wanted(inner)
        case inspect.UnionType(types=parts):
            return " or ".join(_wanted(part) for part in parts if not isinstance(part, inspect.NoneType))
        case inspect.IntType():
            return f"a whole number{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(min_length=least):
            return "a string that is not empty" if least else "a string"
        case inspect.LiteralType(values=values):
            words = [f'"{value}"' if isinstance(value, str) else str(value) for value in values]
            return " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each element {_wanted(item)}"
        case inspect.DictType(value_type=value):
            return f"a table, each value {_wanted(value)}"
    return "a table"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    words = ""
    if kind.gt is not None:
        words = f" greater than {kind.gt:g}"
    elif kind.ge is not None and kind.le is not None:
        words = f" from {kind.ge} to {kind.le}"
    elif kind.ge is not None:
        words = f" of at least {kind.ge:g}"
    if kind.lt is not None:
        words += f" and below {kind.lt:g}"
    if kind.multiple_of is not None:
        words += f" that is a multiple of {kind.multiple_of:g}"
    return words


def _parts(kind: inspect.Type) -> list[inspect.Type]:
    """The types in a union, without annotations."""
    match kind:
        case inspect.Metadata(type=inner):
            return _parts(inner)
        case inspect.UnionType(types=types):
            return [part for inner in types for part in _parts(inner)]
    return [kind]


def _extra(kind: inspect.Type) -> dict[str, Any]:
    """What `schema.key` says about a type; the outermost word counts."""
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            return {**_extra(inner), **{name: value for name, value in (extra or {}).items() if value}}
        case inspect.UnionType(types=types):
            return {name: value for part in types for name, value in _extra(part).items()}
    return {}
