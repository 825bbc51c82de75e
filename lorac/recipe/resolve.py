"""Paths of a recipe: made absolute, checked to exist, kohya training folders taken apart."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from lorac.captions import split_tags
from lorac.errors import InputError, Problem
from lorac.listing import expand, split_glob
from lorac.recipe.diagnostics import missing_path_remedy, nearest, shown_path
from lorac.recipe.places import Place, Tree
from lorac.recipe.recipe import PictureSet
from lorac.recipe.schema import BUILTIN_BASE, Document, Regularisation, Source, Train


def picture_sets(tree: Tree, document: Document, section: str, problems: list[Problem]) -> tuple[PictureSet, ...]:
    """The picture sets of all `[[source]]` or `[[regularisation]]` tables; what cannot be found goes to `problems`."""
    sets: list[PictureSet] = []
    entries: tuple[Source | Regularisation, ...] = getattr(document, section)
    for i, entry in enumerate(entries):
        place = tree.place((section, i, "path"))
        try:
            sets += _sets(entry, place, str(tree.place((section, i, "repeats"))))
        except InputError as error:
            problems += error.problems
    return tuple(sets)


def _sets(entry: Source | Regularisation, place: Place, repeats_place: str) -> list[PictureSet]:
    where = str(place)
    path = place.folder / entry.path
    folder, pattern = split_glob(path)
    if not folder.exists():
        cause = f'path "{shown_path(folder)}" does not exist'
        raise InputError([Problem(where, cause, missing_path_remedy(folder))])
    parts = expand(folder, where) if not pattern and folder.is_dir() else []
    trigger = entry.trigger if isinstance(entry, Source) else None
    caption = entry.caption if isinstance(entry, Regularisation) else None
    if not parts:
        return [PictureSet(_absolute(path), entry.repeats or 1, entry.alpha, where, trigger or (), caption)]
    if entry.repeats is not None:
        cause = f"repeats is given, and so are the numbers of {shown_path(folder)}/{parts[0].folder.name}"
        raise InputError([Problem(repeats_place, cause, "take repeats out, or name a sub-folder in path")])
    return [
        PictureSet(
            path=_absolute(part.folder),
            repeats=part.repeats,
            alpha=entry.alpha,
            where=where,
            @@
        )
        for part in parts
    ]


def _class_trigger(class_tokens: str) -> tuple[str, ...]:
    return tuple(split_tags(class_tokens))


def _absolute(path: Path) -> str:
    """`path` without `..`, symbolic links left alone, so that messages show what the user wrote."""
    return os.path.normpath(path)


def resolve_base(tree: Tree, train: Train, problems: list[Problem]) -> Train:
    """`train` with the base's path made absolute."""
    if train.base == BUILTIN_BASE:
        return train
    place = tree.place(("train", "base"))
    if train.base.startswith("builtin:"):
        problems.append(Problem(str(place), f'there is no base "{train.base}"', f'write "{BUILTIN_BASE}", or a path'))
        return train
    path = place.folder / train.base
    if not path.exists():
        guess = nearest(train.base, [BUILTIN_BASE])
        remedy = f'did you mean "{guess}"?' if guess else missing_path_remedy(path)
        problems.append(Problem(str(place), f'base "{shown_path(path)}" does not exist', remedy))
    return msgspec.structs.replace(train, base=_absolute(path))
