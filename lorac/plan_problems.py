"""What a build would refuse of a recipe's pictures, as `lorac plan` finds it: each with its place and remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorac.errors import Problem
from lorac.kinds.image import Refused, layers
from lorac.listing import shown_path
from lorac.plan import Run, Set, missing_captions, no_captions
from lorac.recipe.recipe import Recipe


def picture_problems(recipe: Recipe, run: Run) -> Iterator[Problem]:
    """Files that are no pictures, the first of a folder with transparent parts and no alpha, missing captions."""
    for path, text in run.looks.refused.items():
        yield _of_picture(path, text)
    for folder in run.sets:
        yield from _undecided(folder, run.looks.transparent)
        if missing := missing_captions(recipe, folder.spec, folder.pictures):
            paths = [picture.path for picture in missing]
            yield Problem(folder.spec.where, *no_captions(recipe, folder.spec, paths, len(folder.pictures)))


def _undecided(folder: Set, candidates: set[str]) -> Iterator[Problem]:
    """The first picture of a folder that surely has transparent parts; its pixels are read, as headers do not tell."""
    if folder.spec.alpha is not None:
        return
    for picture in folder.pictures:
        if picture.path in candidates:
            try:
                layers(Path(picture.path).read_bytes(), None)
            except Refused as refusal:
                yield _of_picture(picture.path, str(refusal))
                return


def _of_picture(path: str, text: str) -> Problem:
    cause, _, remedy = text.partition("; ")
    return Problem(shown_path(path), cause, remedy)
