"""The nodes of the pages: the report of a recipe, and the comparison of a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec

from lorac.digest import Value
from lorac.graph.draw import by_kind, kinds_of
from lorac.graph.nodes import Graph, Input, Node, Output
from lorac.graph.samples import Drawn
from lorac.graph.scope import Pictures, Scope, folder_facts
from lorac.recipe.collection import Collection
from lorac.recipe.recipe import PictureSet


def report(
    scope: Scope,
    sets: Sequence[Pictures],
    schedule: Node,
    train: Node,
    drawn: Drawn | None,
    validate: Node | None,
    evaluate: Node | None,
    about: Mapping[str, Value],
) -> Node:
    """`about`: what `about` says."""
    params: dict[str, Value] = {
        **about,
        "recipe": scope.recipe.file.name,
        "strengths": [0.0, *scope.strengths()],
        "count": scope.pictures_each(),
    }
    inputs = {
        "losses": Input(train, "losses"),
        "slice": Input(schedule, "slice"),
        "summary": Input(schedule, "summary"),
        **(drawn.inputs() if drawn else {}),
        **({"validation": Input(validate, "losses")} if validate else {}),
        **({"figures": Input(evaluate, "figures")} if evaluate else {}),
    }
    for number, pictures in enumerate(sets):
        inputs[f"name.{number}"] = Input(pictures.source, "name")
        inputs[f"caption.{number}"] = Input(pictures.caption, "caption")
        inputs[f"raw.{number}"] = Input(pictures.caption, "raw")
        inputs[f"pixels.{number}"] = Input(pictures.image, "pixels")
    before = by_kind(scope.graph.of_recipe(scope.recipe.name))
    params["graph"] = {**before, "report": sorted(kinds_of(inputs.values()))}
    return scope.add("report", params, inputs)


def about(scope: Scope, sets: Sequence[Pictures], evaluate: Node | None) -> dict[str, Value]:
    """What pages say of a recipe, its own report and one that compares it; strengths are those drawn with the LoRA."""
    return {
        "name": scope.recipe.name,
        "comment": scope.recipe.output.comment,
        "settings": _settings(scope, evaluate),
        "folders": [folder_facts(pictures) for pictures in sets],
        "sets": [_written(scope, pictures.folder) for pictures in sets],
        "prompts": list(scope.prompts()),
        "strengths": list(scope.strengths()),
    }


def _settings(scope: Scope, evaluate: Node | None) -> dict[str, Value]:
    """How the LoRA is made, drawn and, where it is, measured; of a path only the name counts."""
    settings = {**scope.settings(), "sample": msgspec.to_builtins(scope.recipe.sample)}
    if evaluate:
        measured: dict[str, Any] = msgspec.to_builtins(scope.recipe.evaluate)
        settings["evaluate"] = measured
        if measured["tagger"]:
            measured["tagger"] = PurePath(measured["tagger"]).name
    return settings


def _written(scope: Scope, folder: PictureSet) -> dict[str, Value]:
    """A picture set as the recipe writes it; a folder that is not below the recipe has only its name."""
    home = PurePath(scope.recipe.file.absolute().parent)
    path = PurePath(folder.path)
    shown = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name
    place: dict[str, Value] = {"path": shown}
    if folder.generate:
        place = {"generate": msgspec.to_builtins(folder.generate)}
    words: dict[str, Value] = {"caption": folder.caption or ""}
    if not folder.regularisation:
        words = {"trigger": list(folder.trigger)}
    return {**place, "repeats": folder.repeats, **words, "alpha": folder.alpha, "alpha_mask": folder.alpha_mask}


@dataclass(frozen=True)
class Parts:
    """What a comparison says of a recipe, and what it reads: `draw` drew the prompts with the LoRA, `off` without."""

    about: Mapping[str, Value]
    train: Node
    draw: Node | None = None
    off: Node | None = None
    evaluate: Node | None = None


def compare(graph: Graph, collection: Collection, parts: Mapping[str, Parts]) -> None:
    """Add the page of a collection and its file. `parts` are those of all recipes, by name.

    Inputs are optional: with `build -k` the page compares what could be built, and names the recipes that have no port
    `losses.N`.
    """
    inputs: dict[str, Input] = {}
    for number, recipe in enumerate(collection.recipes):
        own = parts[recipe.name]
        if own.evaluate:
            inputs[f"figures.{number}"] = Input(own.evaluate, "figures", optional=True)
        inputs[f"losses.{number}"] = Input(own.train, "losses", optional=True)
        if own.draw:
            inputs[f"first.{number}"] = Input(own.draw, "first", optional=True)
        if own.off:
            inputs[f"off.{number}"] = Input(own.off, "first", optional=True)
    params: dict[str, Value] = {
        "title": collection.title,
        "comment": collection.comment,
        "recipes": [parts[recipe.name].about for recipe in collection.recipes],
    }
    page = graph.add(Node(f"{collection.name}:compare", "compare", params, inputs))
    graph.outputs.append(Output(collection.name, "report.html", Input(page, "html")))
