"""What a build would refuse of a recipe's pictures, as `lorac plan` finds it: each with its place and remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorac.errors import Problem
from lorac.kinds.image import Refused, layers
from lorac.listing import shown_path
from lorac.plan import Run, Set, missing_captions
from lorac.recipe.recipe import Recipe


def picture_problems(recipe: Recipe, run: Run) -> Iterator[Problem]:
    """Files that are no pictures, the first of a folder with transparent parts and no alpha, missing captions."""
    for path, text in run.looks.refused.items():
        yield _of_picture(path, text)
    for folder in run.sets:
        yield from _undecided(folder, run.looks.transparent)
        missing = missing_captions(recipe, folder.spec, folder.pictures)
        if missing:
            first = shown_path(missing[0].path)
            cause = f"{len(missing)} of {len(folder.pictures)} pictures have no caption, first {first}"
            instead = "caption = …" if folder.spec.regularisation else "trigger words"
            remedy = f"write {recipe.caption.extension} files beside them, or give them {instead}"
            yield Problem(folder.spec.where, cause, remedy)


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
