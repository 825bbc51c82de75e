"""The memory that training takes, as `lorac plan` shows it and `lorac build --budget` holds it to."""

from __future__ import annotations

import msgspec

from lorac.errors import InputError, Problem
from lorac.graph.scope import training_resolution
from lorac.plan import Run as Figures
from lorac.recipe.base import base_shapes
from lorac.recipe.recipe import Recipe
from lorac.sd.lora_settings import NetworkSettings
from lorac.train.memory.budget import shown
from lorac.train.memory.choose import Choice, Outcome, choose, remedies
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes, ranks
from lorac.train.switches import Recompute

TOKENS = 75
"""Of the recipe's in one chunk of a caption."""
SHOWN = 4
"""Plans that were not taken are named as far as that."""
AGAIN = {
    Recompute.NOTHING: "nothing is computed again",
    Recompute.ELEMENTWISE: "norms and activation functions are computed again",
    Recompute.FEED_FORWARD: "feed-forward layers are computed again",
    Recompute.TRANSFORMER: "transformers are computed again",
    Recompute.BLOCK: "whole blocks are computed again",
}
NAMES = {"weights": "base", "lora": "LoRA", "captions": "states of captions", "context": "libraries"}


def memory_run(recipe: Recipe, figures: Figures, cuda: bool) -> Run | None:
    """What the planner has to know of a recipe; None for what it cannot predict: LoCon, DoRA and dropouts."""
    network, train = (msgspec.to_builtins(section) for section in (recipe.network, recipe.train))
    settings = NetworkSettings.of(network, train)
    if settings.dora or settings.dropping or settings.locon:
        return None
    resolution = training_resolution(recipe, figures.facts)
    buckets = [tuple(map(int, size.split("x"))) for size in figures.looks.buckets if "x" in size]
    height, width = max(buckets, key=lambda size: size[0] * size[1], default=(resolution, resolution))
    return Run(
        Sizes.of(base_shapes(figures.facts.path), figures.facts.heads),
        (ranks(settings.adapters(recipe.network.targets)),),
        height=height,
        width=width,
        batch=recipe.train.batch_size,
        chunks=max(1, recipe.train.max_token_length // TOKENS),
        optimizer=recipe.train.optimizer,
        ema=bool(recipe.train.ema_decay),
        cuda=cuda,
        captions=figures.length.batches * figures.length.epochs * recipe.train.batch_size,
        resolution=resolution,
    )


def rows(run: Run | None, budget: int | None) -> list[tuple[str, str]]:
    """The lines of a plan: name and text."""
    if run is None:
        return [("memory", "not predicted for LoCon, DoRA and dropouts")]
    choice = choose(run, budget)
    if choice.chosen is None:
        return [("memory", f"does not fit {shown(budget or 0)}: {_refusal(run, choice)}")]
    prediction = choice.chosen.prediction
    parts = ", ".join(f"{NAMES.get(name, name)} {shown(size)}" for name, size in prediction.parts.items() if size)
    where = "of the card" if run.cuda else "of this machine"
    limit = f"within {shown(budget)}" if budget is not None else "no budget: give --budget for one"
    found = [
        ("memory", f"{shown(prediction.total)} {where} at the peak of a step ({limit})"),
        ("", parts),
        ("", f"plan: {_words(run, choice.chosen.plan)}"),
    ]
    others = [outcome for outcome in choice.others if outcome.plan.recompute or run.merged][:SHOWN]
    return found + [("", f"not taken: {_other(run, choice, outcome)}") for outcome in others]


def refuse(recipe: Recipe, run: Run | None, budget: int) -> None:
    """Raises InputError for a recipe that fits by no plan."""
    if run is None:
        return
    choice = choose(run, budget)
    if choice.chosen is None:
        cause = f"training needs {shown(choice.smallest.prediction.total)} at least, and the budget is {shown(budget)}"
        raise InputError([Problem(recipe.where("train.batch_size"), cause, _nearest(run, budget))])


def _refusal(run: Run, choice: Choice) -> str:
    assert choice.budget is not None
    return f"{shown(choice.smallest.prediction.total)} at least; {_nearest(run, choice.budget)}"


def _nearest(run: Run, budget: int) -> str:
    found = [f"{remedy.text} ({shown(remedy.total)})" for remedy in remedies(run, budget)]
    return f"set {', or '.join(found)}" if found else "give a larger budget"


def _words(run: Run, plan: Plan) -> str:
    passes = "each batch in one pass" if plan.split == 1 else f"each batch in {plan.split} passes"
    away = "; the text encoder is on the CPU" if plan.away else ""
    return f"{passes}; {AGAIN[plan.recompute]}{away}"


def _other(run: Run, choice: Choice, outcome: Outcome) -> str:
    times = choice.times(outcome)
    return f"{shown(outcome.prediction.total)}, {times:.2f} × the time: {_words(run, outcome.plan)}"
