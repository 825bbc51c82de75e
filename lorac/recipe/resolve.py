"""Paths of a recipe: made absolute, checked to exist, kohya training folders taken apart."""

from __future__ import annotations

import os

import msgspec

from lorac.captions import split_tags
from lorac.errors import InputError, Problem
from lorac.listing import KohyaFolder, exists, expand, shown_path, split_glob
from lorac.recipe.diagnostics import missing_path_remedy, nearest
from lorac.recipe.fields import BUILTIN_BASE, BUILTIN_TAGGER
from lorac.recipe.places import Tree
from lorac.recipe.recipe import PictureSet
from lorac.recipe.schema import BUILTINS, GLOBS, PATHS, Document
from lorac.recipe.sections.data import Regularisation, Source
from lorac.recipe.validate import entries

INSTEAD = {
    ("train", "base"): f"give an SD1.x checkpoint as --base FILE, or --base {BUILTIN_BASE}",
    ("tagger", "model"): f'give the folder of a WD14 tagger, or "{BUILTIN_TAGGER}"',
    ("evaluate", "tagger"): f'give the folder of a WD14 tagger, or "{BUILTIN_TAGGER}"',
}
"""What to give for a path that leads nowhere."""


def picture_sets(tree: Tree, document: Document, section: str, problems: list[Problem]) -> tuple[PictureSet, ...]:
    """The picture sets of all `[[source]]` or `[[regularisation]]` tables; what cannot be found goes to `problems`.

    Tables that the schema refuses are reported already.
    """
    sets: list[PictureSet] = []
    for i, entry in entries(tree.data, section):
        assert isinstance(entry, Source | Regularisation)
        try:
            sets += _picture_sets(tree, document, (section, i), entry)
        except InputError as error:
            problems += error.problems
    return tuple(sets)


def _picture_sets(
    tree: Tree, document: Document, at: tuple[str, int], entry: Source | Regularisation
) -> list[PictureSet]:
    if isinstance(entry, Regularisation):
        table = tree.data[at[0]][at[1]]
        _check_origin(tree, at, table)
        if entry.generate is not None:
            return [_generated(tree, document, at, entry, table)]
    if entry.path is None:
        return []
    place = tree.place((*at, "path"))
    path = place.folder / entry.path
    folder, pattern = split_glob(path)
    if not exists(folder):
        cause = f'path "{shown_path(folder)}" does not exist'
        raise InputError([Problem(str(place), cause, missing_path_remedy(folder))])
    parts = expand(folder, str(place)) if not pattern and folder.is_dir() else []
    if not parts:
        return [_picture_set(str(place), entry, os.path.normpath(path), entry.repeats or 1)]
    if entry.repeats is not None:
        cause = f'repeats is given, but "{shown_path(folder)}" has sub-folders like {parts[0].folder.name}'
        remedy = "take repeats out, or name a sub-folder in path"
        raise InputError([Problem(str(tree.place((*at, "repeats"))), cause, remedy)])
    return [
        _picture_set(str(place), _named_by(part, entry), os.path.normpath(part.folder), part.repeats) for part in parts
    ]


def _named_by(part: KohyaFolder, entry: Source | Regularisation) -> Source | Regularisation:
    """`entry` with the trigger or caption that kohya takes from the folder's name, where the recipe gives none."""
    if isinstance(entry, Source):
        trigger = tuple(split_tags(part.class_tokens)) if entry.trigger is None else entry.trigger
        return msgspec.structs.replace(entry, trigger=trigger)
    return msgspec.structs.replace(entry, caption=entry.caption or part.class_tokens or None)


def _picture_set(where: str, entry: Source | Regularisation, path: str, repeats: int) -> PictureSet:
    if isinstance(entry, Source):
        return PictureSet(path, repeats, entry.alpha, where, entry.alpha_mask, trigger=entry.trigger or ())
    return PictureSet(path, repeats, entry.alpha, where, entry.alpha_mask, caption=entry.caption, regularisation=True)


def _check_origin(tree: Tree, at: tuple[str, int], table: dict[str, object]) -> None:
    """Raises InputError unless the table has one of `path` and `generate`."""
    if "path" in table and "generate" in table:
        cause = "[[regularisation]] has both path and generate"
        remedy = "take one out; another [[regularisation]] may have it"
        raise InputError([Problem(str(tree.place((*at, "generate"))), cause, remedy)])
    if "path" not in table and "generate" not in table:
        cause = "[[regularisation]] has neither path nor generate"
        remedy = 'add path = "…", or generate = { prompt = "1girl", count = 400 }'
        raise InputError([Problem(str(tree.place(at)), cause, remedy)])


def _generated(
    tree: Tree, document: Document, at: tuple[str, int], entry: Regularisation, table: dict[str, object]
) -> PictureSet:
    """The set of a table with `generate`. Raises InputError if no picture of it could be used."""
    generate, place = entry.generate, str(tree.place((*at, "generate")))
    assert generate is not None
    problems = []
    if generate.transparent and "alpha" not in table:
        cause = "the generated pictures have transparent parts and the recipe does not say what is behind them"
        problems.append(Problem(place, cause, 'add alpha = "white" to their table'))
    name = "transparent" if generate.transparent else "generated"
    found = PictureSet(
        name,
        entry.repeats or 1,
        entry.alpha,
        place,
        entry.alpha_mask,
        caption=entry.caption,
        regularisation=True,
        generate=generate,
    )
    tagged = document.tagger.model is not None and found.asks_tagger
    if not tagged and "caption" not in table and not split_tags(generate.prompt):
        problems.append(Problem(place, "the generated pictures have no caption", "give a prompt, or a caption"))
    if problems:
        raise InputError(problems)
    return found


def resolve_files(tree: Tree, document: Document, problems: list[Problem]) -> Document:
    """`document` with the paths of `schema.PATHS` made absolute; what does not exist goes to `problems`."""
    for section, name in PATHS:
        settings = getattr(document, section)
        value = getattr(settings, name)
        if value is not None:
            found = _resolve_file(tree, (section, name), value, problems)
            settings = msgspec.structs.replace(settings, **{name: found})
            document = msgspec.structs.replace(document, **{section: settings})
    return document


def _resolve_file(tree: Tree, at: tuple[str, str], value: str, problems: list[Problem]) -> str:
    builtin = BUILTINS.get(at)
    if value == builtin:
        return value
    place, name = tree.place(at), at[-1]
    if value.startswith("builtin:"):
        remedy = f'write "{builtin}", or a path' if builtin else "give a path"
        problems.append(Problem(str(place), f'there is no {name} "{value}"', remedy))
        return value
    path = place.folder / value
    needed = split_glob(path)[0] if at in GLOBS else path
    if not exists(needed):
        guess = nearest(value, [builtin] if builtin else [])
        remedy = f'did you mean "{guess}"?' if guess else missing_path_remedy(needed)
        if builtin and not remedy.startswith("did you mean"):
            remedy += f"; {INSTEAD[at]}"
        problems.append(Problem(str(place), f'{name} "{shown_path(needed)}" does not exist', remedy))
    return os.path.normpath(path)
