"""Read recipes: parse, extend, apply options, expand the matrix, lay the preset below, validate, resolve paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.recipe.collection import Collection, Member, collected, read_listing
from lorac.recipe.diagnostics import line_order
from lorac.recipe.layers import apply_options, is_collection, read_chain
from lorac.recipe.matrix import expand
from lorac.recipe.places import Tree
from lorac.recipe.presets import underlay
from lorac.recipe.recipe import Recipe
from lorac.recipe.resolve import picture_sets, resolve_files
from lorac.recipe.rules import check, name_fault
from lorac.recipe.schema import EXCLUSIVE
from lorac.recipe.sections.output import Prompt, Sample
from lorac.recipe.sections.train import Train
from lorac.recipe.start import with_start
from lorac.recipe.validate import read_document


@dataclass(frozen=True)
class Loaded:
    """What the files of a command line hold: all recipes in order, and the collections that some of them are of."""

    recipes: list[Recipe]
    collections: list[Collection]

    @property
    def names(self) -> list[str]:
        """Of everything that has a folder of outputs."""
        return [*(made.name for made in self.recipes), *(made.name for made in self.collections)]


def load(paths: Sequence[Path], sets: Sequence[str] = (), base: str | None = None) -> list[Recipe]:
    """The recipes in the files `paths`, in order; a file with a matrix and a collection give several.

    `sets` are `--set` assignments such as `train.seed=7`, `base` is `--base`; they win over every file.
    Raises InputError with all problems of all recipes, each recipe's in the order of its lines.
    """
    return load_all(paths, sets, base).recipes


def load_all(paths: Sequence[Path], sets: Sequence[str] = (), base: str | None = None) -> Loaded:
    """The same with the collections among them."""
    loaded = Loaded([], [])
    problems: list[Problem] = []
    members = [Member(path) for path in paths]
    for path in dict.fromkeys(paths):
        try:
            tree = read_chain(path)
            if is_collection(tree):
                listing, own = read_listing(tree)
                members += own
                recipes = _load_members(own, sets, base, problems)
                loaded.collections.append(collected(tree, path, listing, tuple(recipes)))
            else:
                recipes = _load_recipes(path, tree, sets, base)
            loaded.recipes.extend(recipes)
        except InputError as error:
            problems += error.problems
    problems += _given_twice(members) or _same_names(loaded)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return loaded


def _load_members(
    members: Sequence[Member], sets: Sequence[str], base: str | None, problems: list[Problem]
) -> list[Recipe]:
    """The recipes of a collection; what is wrong with them goes to `problems`."""
    recipes = []
    for member in members:
        try:
            recipes += _load_recipes(member.path, read_chain(member.path, member.where), sets, base)
        except InputError as error:
            problems += error.problems
    return recipes


def _load_recipes(path: Path, tree: Tree, sets: Sequence[str], base: str | None) -> list[Recipe]:
    problems = apply_options(tree, sets, base)
    fixed = {at for at, place in tree.places.items() if place.line is None}
    fixed |= {EXCLUSIVE[at] for at in fixed if at in EXCLUSIVE}
    recipes = []
    for suffix, point, values in expand(tree, fixed, problems):
        recipes.append(_load_point(path, suffix, point, values, problems))
    if problems:
        raise InputError(sorted(problems, key=line_order))
    return recipes


def _load_point(
    path: Path, suffix: str, point: tuple[tuple[str, Any], ...], tree: Tree, problems: list[Problem]
) -> Recipe:
    """The recipe of one matrix point; what is wrong goes to `problems`, and then the recipe is of no use."""
    underlay(tree)
    document, findings = read_document(tree.data)
    wrong = {finding.meant or finding.path for finding in findings}
    findings += check(document, wrong)
    problems += [Problem(str(tree.place(finding.path)), finding.cause, finding.remedy) for finding in findings]
    sources = picture_sets(tree, document, "source", problems)
    regularisation = picture_sets(tree, document, "regularisation", problems)
    document = with_start(tree, resolve_files(tree, document, problems), problems)
    if any(pictures.path == document.validation.path for pictures in (*sources, *regularisation)):
        cause = f'the pictures of "{shown_path(document.validation.path or "")}" are trained and cannot be held out'
        remedy = "move some into another folder, or give split instead of path"
        problems.append(Problem(str(tree.place(("validation", "path"))), cause, remedy))
    name = (document.output.name or path.stem) + suffix
    if (suffix or document.output.name is None) and (fault := name_fault(name)):
        problems.append(Problem(tree.root.label, f'the name "{name}" {fault}', "give a name in [output]"))
    return Recipe(
        name=name,
        file=path.absolute(),
        sources=sources,
        regularisation=regularisation,
        caption=document.caption,
        tagger=document.tagger,
        network=document.network,
        train=_with_rates(document.train),
        loss=document.loss,
        validation=document.validation,
        sample=_with_prompts(document.sample),
        output=msgspec.structs.replace(document.output, name=name),
        evaluate=document.evaluate,
        check=document.check,
        point=point,
        root=tree.root,
        places=tree.places,
    )


def _with_rates(train: Train) -> Train:
    """Both learning rates spelt out."""
    text_encoder = train.learning_rate if train.text_encoder_lr is None else train.text_encoder_lr
    unet = train.learning_rate if train.unet_lr is None else train.unet_lr
    return msgspec.structs.replace(train, text_encoder_lr=text_encoder, unet_lr=unet)


def _with_prompts(sample: Sample) -> Sample:
    """Every prompt as a table with its negative prompt."""
    prompts = tuple(
        Prompt(prompt=entry, negative=sample.negative)
        if isinstance(entry, str)
        else Prompt(prompt=entry.prompt, negative=sample.negative if entry.negative is None else entry.negative)
        for entry in sample.prompts
    )
    return msgspec.structs.replace(sample, prompts=prompts)


def _given_twice(members: Sequence[Member]) -> list[Problem]:
    first: dict[Path, Member] = {}
    problems = []
    for member in members:
        if first.setdefault(member.path.resolve(), member) is not member:
            what = f'the recipe "{shown_path(member.path)}"' if member.where else "the recipe"
            problems.append(Problem(member.where or shown_path(member.path), f"{what} is given twice", "name it once"))
    return problems


def _same_names(loaded: Loaded) -> list[Problem]:
    """What would overwrite the outputs of another; file systems that ignore case are many."""
    first: dict[str, str] = {}
    problems = []
    named = [(made.name, made.where("output.name"), "another name in [output]") for made in loaded.recipes]
    named += [(made.name, made.where, "another name") for made in loaded.collections]
    for name, where, remedy in named:
        if name.casefold() in first:
            cause = f'the output name "{name}" is also that of {first[name.casefold()]}'
            problems.append(Problem(where, cause, f"give one of them {remedy}"))
        else:
            first[name.casefold()] = where
    return problems
