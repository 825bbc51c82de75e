"""The comparison page of a collection: what its recipes' builds found, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorac.digest import Value
from lorac.graph.nodes import Graph, Input, Node, Output
from lorac.recipe.collection import Collection


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
