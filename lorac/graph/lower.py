"""From checked recipes to the build graph.

    source ─▶ image ─┬─────────────▶ bucket ─┐
       │             └▶ latent ◀─ vae        ├─▶ schedule ─▶ train ─▶ export ─▶ sidecar, report
       ├────▶ caption ─▶ tokens ─────────────┘                 │        ▲
       └ tag ─────┘                                            │        │
    base ─▶ weights ─▶ unet, text ─────────────────────────────┴─▶ draw, validate ─▶ measure ─▶ evaluate ─▶ sidecar

Where a set of pictures is to be generated, `generate` stands in place of `source`.

A pure function of the recipe and the base's header. What enters a node's `params` is what its key contains: a setting
belongs there exactly if it can change the node's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorac.graph import pages, pictures, samples, training
from lorac.graph.nodes import Graph, Input, Output, Take
from lorac.graph.scope import Scope
from lorac.recipe.base import base_facts
from lorac.recipe.collection import Collection
from lorac.recipe.recipe import Recipe


def lower(recipes: Sequence[Recipe], collections: Sequence[Collection] = ()) -> Graph:
    """One graph for all recipes; what they have in common is in it once. Raises InputError for an unusable base.

    `collections` are of some of the recipes, whose builds they compare.
    """
    graph = Graph()
    parts: dict[str, pages.Parts] = {}
    for recipe in recipes:
        facts = base_facts(recipe.train.base, recipe.where("train.base"), recipe.train.vae)
        parts[recipe.name] = _lower(Scope(graph, recipe, facts))
    for collection in collections:
        pages.compare(graph, collection, parts)
    return graph


def _lower(scope: Scope) -> pages.Parts:
    """All nodes and files of one recipe."""
    base = scope.add("base", {}, hints={"path": str(scope.facts.path)})
    weights = training.weights(scope, base)
    sets = pictures.sets_of(scope, weights)
    held_out = pictures.held_out(scope, sets, weights)
    schedule = training.schedule(scope, sets, held_out)
    train = training.train(scope, sets, schedule, weights)
    export = training.export(scope, sets, schedule, train, base)
    drawn = samples.draw(scope, train, weights) if scope.recipe.sample.prompts else None
    validate = (
        training.validate(scope, schedule, train, held_out) if held_out or scope.recipe.validation.split else None
    )
    judge = scope.recipe.judge
    evaluate = samples.evaluate(scope, judge, sets, drawn, validate) if drawn and judge else None
    sidecar = samples.sidecar(scope, export, drawn, Input(evaluate, "figures") if evaluate else None)
    about = pages.about(scope, sets, evaluate)
    report = pages.report(scope, sets, schedule, train, drawn, validate, evaluate, about)
    name = scope.recipe.name
    for file, value in [
        (f"{name}.safetensors", Input(export, "lora", Take.LAST)),
        (f"{name.replace('{', '{{').replace('}', '}}')}-{{n:06d}}.safetensors", Input(export, "lora")),
        (f"{name}.json", Input(sidecar, "json")),
        *([(f"{name}.png", Input(sidecar, "preview"))] if drawn else []),
        ("report.html", Input(report, "html")),
        *([("evaluation.json", Input(evaluate, "figures"))] if evaluate else []),
    ]:
        scope.graph.outputs.append(Output(name, file, value, scope.recipe.train.save_every_n_epochs or 1))
    on, off = (drawn.on, drawn.off) if drawn else (None, None)
    return pages.Parts(about, train, on, off, evaluate)
