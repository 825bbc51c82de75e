"""Read recipes: parse, extend, apply options, expand the matrix, lay the preset below, validate, resolve paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.recipe.layers import apply_options, read_chain
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


def load(paths: Sequence[Path], sets: Sequence[str] = (), base: str | None = None) -> list[Recipe]:
    """The recipes in the files `paths`, in order; a file with a matrix gives several.

    `sets` are `--set` assignments such as `train.seed=7`, `base` is `--base`; they win over every file.
    Raises InputError with all problems of all recipes, each recipe's in the order of its lines.
    """
    problems: list[Problem] = []
    recipes: list[Recipe] = []
    for path in paths:
        try:
            recipes += _load_file(path, sets, base)
        except InputError as error:
            problems += error.problems
    problems += _given_twice(paths) or _same_names(recipes)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return recipes


def _load_file(path: Path, sets: Sequence[str], base: str | None) -> list[Recipe]:
    tree = read_chain(path)
    problems = apply_options(tree, sets, base)
    fixed = {at for at, place in tree.places.items() if place.line is None}
    fixed |= {EXCLUSIVE[at] for at in fixed if at in EXCLUSIVE}
    recipes = []
    for suffix, point, values in expand(tree, fixed, problems):
        recipes.append(_load_point(path, suffix, point, values, problems))
    if problems:
        raise InputError(sorted(problems, key=_line_order))
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


def _line_order(problem: Problem) -> tuple[str, int]:
    label, _, line = problem.where.rpartition(":")
    return (label, int(line)) if line.isdecimal() else (problem.where, 0)


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


def _given_twice(paths: Sequence[Path]) -> list[Problem]:
    first: dict[Path, Path] = {}
    twice = [path for path in paths if first.setdefault(path.resolve(), path) is not path]
    return [Problem(shown_path(path), "the recipe is given twice", "name it once") for path in twice]


def _same_names(recipes: Sequence[Recipe]) -> list[Problem]:
    """Recipes whose outputs would overwrite each other; file systems that ignore case are many."""
    first: dict[str, Recipe] = {}
    problems = []
    for recipe in recipes:
        other = first.setdefault(recipe.name.casefold(), recipe)
        if other is not recipe:
            cause = f'the output name "{recipe.name}" is also that of {other.where("output.name")}'
            problems.append(Problem(recipe.where("output.name"), cause, "give one of them another name in [output]"))
    return problems
