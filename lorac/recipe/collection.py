"""Collections: a file that stands for several recipes, which are built together and compared.

    recipes = ["article/riho_head.toml", "article/riho_fullbody.toml"]
    title = "The article's runs"

Any verb takes one where it takes a recipe. What holds for all of its recipes is written in a recipe that they extend.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from lorac.errors import InputError, Problem
from lorac.recipe.diagnostics import bracketed, fields, line_order, nearest
from lorac.recipe.fields import Section, Text, key
from lorac.recipe.places import Tree
from lorac.recipe.recipe import Recipe
from lorac.recipe.rules import name_fault
from lorac.recipe.schema import SECTIONS, Document
from lorac.recipe.validate import read_section


class Listing(Section, frozen=True):
    """A file with these keys and no others stands for its recipes; a build of it also writes a page that compares
    them."""

    recipes: Annotated[
        Annotated[tuple[Text, ...], Meta(min_length=1)],
        key("Recipe files, relative to this one; each stands for all points of its matrix."),
    ]
    name: Annotated[Text | None, key("Folder of the comparison page. Absent: this file's name.")] = None
    title: Annotated[str, key("Heading of the comparison page. Absent: the name.")] = ""
    comment: Annotated[str, key("Text below the heading.")] = ""


@dataclass(frozen=True)
class Member:
    """A recipe file that is to be read; `where` is the line that lists it, or empty for the command line."""

    path: Path
    where: str = ""


@dataclass(frozen=True)
class Collection:
    """A collection that has been read. `recipes` are those of all its files, in order."""

    name: str
    title: str
    comment: str
    where: str
    recipes: tuple[Recipe, ...]


def read_listing(tree: Tree) -> tuple[Listing, list[Member]]:
    """What the file of a collection says. Raises InputError with everything in it that is no collection's."""
    problems = [_unknown(tree, name) for name in tree.data if name not in fields(Listing)]
    known = {name: value for name, value in tree.data.items() if name in fields(Listing)}
    listing, findings = read_section(Listing, known)
    problems += [Problem(str(tree.place(finding.path)), finding.cause, finding.remedy) for finding in findings]
    if problems:
        raise InputError(sorted(problems, key=line_order))
    assert listing is not None, "a section that lacks something has a finding"
    places = [tree.place(("recipes", i)) for i in range(len(listing.recipes))]
    return listing, [Member(at.folder / path, str(at)) for at, path in zip(places, listing.recipes, strict=True)]


def collected(tree: Tree, file: Path, listing: Listing, recipes: tuple[Recipe, ...]) -> Collection:
    """The collection of a file and the recipes that were read for it. Raises InputError for an unusable name."""
    name, where = listing.name or file.stem, str(tree.place(("name",)))
    if fault := name_fault(name):
        raise InputError.of(where, f'the name "{name}" {fault}', "give another name")
    return Collection(name, listing.title or name, listing.comment, where, recipes)


def _unknown(tree: Tree, name: str) -> Problem:
    where = str(tree.place((name,)))
    if name in fields(Document):
        what = bracketed(name) if name in SECTIONS else f'"{name}"'
        return Problem(where, f"a collection of recipes has no {what}", "write it into a recipe that they extend")
    guess = nearest(name, fields(Listing))
    remedy = f'did you mean "{guess}"?' if guess else f"known here: {', '.join(fields(Listing))}"
    return Problem(where, f'unknown key "{name}" of a collection', remedy)
