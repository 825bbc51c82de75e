"""A recipe's pictures and final captions as text, for the verbs that look without building.

`captions` and `check` read the folders directly: they answer before anything is in the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorac.captions import decode_caption, joined
from lorac.errors import InputError, Problem
from lorac.kinds.generate import name
from lorac.listing import Picture, pictures, shown_path
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.sd.tokenizer import Tokenizer
from lorac.wildcards import final, showings

TAGGED = "(tagged when built)"
"""Stands for the tags of a picture that only the tagger knows."""


def pictures_of(recipe: Recipe, spec: PictureSet) -> list[Picture]:
    """The pictures of a set. Of those that are to be generated paths are only names: there are no files.

    Raises InputError for a folder that cannot be read.
    """
    if spec.generate is None:
        return pictures(spec.path, recipe.caption.extension, spec.where)
    names = map(name, range(spec.generate.count))
    return [Picture(name, f"{spec.path}/{name}", os.stat_result((0,) * 10)) for name in names]


@dataclass(frozen=True)
class Captioned:
    """A picture, the caption as written (None without a file), the final one, and the tags of each way to show it.

    `tagged`: a build asks the tagger about this picture, and the tags are only those that the recipe adds.
    """

    picture: Picture
    raw: str | None
    text: str
    readings: tuple[tuple[str, ...], ...]
    tagged: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """Those of the first reading."""
        return self.readings[0]

    def longest(self) -> tuple[int, tuple[str, ...]]:
        """(tokens, tags) of the reading with the most tokens."""
        encode = Tokenizer().encode
        return max(((len(encode(joined(tags))), tags) for tags in self.readings), key=lambda found: found[0])


@dataclass(frozen=True)
class Folder:
    """One folder: a source, regularisation pictures, or those that are held out; or a set that is to be generated."""

    spec: PictureSet
    regularisation: bool
    pictures: tuple[Captioned, ...]

    @property
    def label(self) -> str:
        return Path(self.spec.path).name

    @property
    def files(self) -> tuple[Captioned, ...]:
        """The pictures that are files: none of a set that is to be generated."""
        return () if self.spec.generate else self.pictures


def folders(recipe: Recipe, *, held_out: bool = False) -> list[Folder]:
    """All folders of a recipe that are trained, sources first, and with `held_out` that of `validation.path` at last.

    Raises InputError with every folder and caption that cannot be read, held-out ones too.
    """
    problems: list[Problem] = []
    found = [Folder(spec, spec.regularisation, tuple(_captioned(recipe, spec, problems))) for spec in recipe.folders]
    if problems:
        raise InputError(problems)
    return [folder for folder in found if held_out or not folder.spec.held_out]


def _captioned(recipe: Recipe, spec: PictureSet, problems: list[Problem]) -> Iterator[Captioned]:
    rules = recipe.rules(spec)
    try:
        found = pictures_of(recipe, spec)
    except InputError as error:
        problems += error.problems
        return
    asked = recipe.tagger.model is not None and spec.asks_tagger
    for picture in found:
        written = picture.caption_path
        tagged = asked and written is None
        try:
            raw = None if written is None else decode_caption(Path(written).read_bytes(), rules.wildcard)
            text = final(rules, raw if raw is not None else "" if tagged else spec.fallback)
            lines = showings(text, rules.separator, rules.wildcard)
        except (ValueError, OSError) as error:
            cause, _, remedy = str(error).partition("; ")
            problems.append(Problem(shown_path(written or picture.path), f"the caption {cause}", remedy))
            continue
        yield Captioned(picture, raw, text, tuple(shown.tags for line in lines for shown in line), tagged)


def caption_lines(recipe: Recipe) -> list[str]:
    """Every final caption behind its number of tokens; what is behind the limit is shown as cut off.

    Of a caption with choices the number is that of its longest reading.
    """
    limit = recipe.train.max_token_length
    lines = [f"{recipe.name}: tokens (cut off at {limit}), picture, final caption"]
    for folder in folders(recipe, held_out=True):
        # Generated pictures have one caption, or captions that nobody knows yet.
        for captioned in folder.files or folder.pictures[:1]:
            count, tags = captioned.longest()
            shown = "?" if captioned.tagged else str(count)
            first, *more = (joined([*captioned.tags, TAGGED]) if captioned.tagged else captioned.text).split("\n")
            which = captioned.picture.name if folder.files else f"{len(folder.pictures)} pictures"
            lines.append(f"{shown:>5}  {folder.label}/{which}  {first}")
            lines += [f"       or  {line}" for line in more]
            if count > limit:
                kept = fitting(tags, limit)
                lines.append(f"       cut off, in the order written: {joined(tags[kept:])}")
    return lines


def fitting(tags: tuple[str, ...], limit: int) -> int:
    """How many of the tags, from the first, fit into `limit` tokens as a whole."""
    encode = Tokenizer().encode
    return max((n for n in range(len(tags) + 1) if len(encode(joined(tags[:n]))) <= limit), default=0)
