"""The memory that training takes, as `lorac plan` shows it and `lorac build --budget` holds it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from lorac.errors import Problem
from lorac.graph.scope import training_resolution
from lorac.kinds.gang_size import Cut
from lorac.plan import Run as Figures
from lorac.recipe.base import base_shapes
from lorac.recipe.recipe import Recipe
from lorac.train.memory.budget import shown
from lorac.train.memory.choose import Choice, Outcome, choose, refusal
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes
from lorac.train.switches import Recompute

TOKENS = 75
"""Of the recipe's in one chunk of a caption."""
UNPREDICTED = "not predicted for LoCon, DoRA and dropouts"
AGAIN = {
    Recompute.NOTHING: "nothing is computed again",
    Recompute.ELEMENTWISE: "norms and activation functions are computed again",
    Recompute.FEED_FORWARD: "feed-forward layers are computed again",
    Recompute.TRANSFORMER: "transformers are computed again",
    Recompute.BLOCK: "whole blocks are computed again",
}
NAMES = {"weights": "base", "lora": "LoRA", "blas": "cuBLAS", "captions": "states of captions", "context": "libraries"}


def memory_run(recipe: Recipe, figures: Figures, cuda: bool) -> Run | None:
    """What the planner has to know of a recipe; None for what it cannot predict: LoCon, DoRA and dropouts."""
    resolution = training_resolution(recipe, figures.facts)
    sides = [bucket.split("x") for bucket in figures.looks.buckets if "x" in bucket]
    buckets = [(int(first), int(second)) for first, second in sides]
    return Run.of(
        Sizes.of(base_shapes(figures.facts.path), figures.facts.heads),
        msgspec.to_builtins(recipe.network),
        msgspec.to_builtins(recipe.train),
        recipe.network.targets,
        size=max(buckets, key=lambda size: size[0] * size[1], default=(resolution, resolution)),
        batch=recipe.train.batch_size,
        chunks=max(1, recipe.train.max_token_length // TOKENS),
        captions=figures.length.batches * figures.length.epochs * recipe.train.batch_size,
        resolution=resolution,
        cuda=cuda,
    )


def at_once(gang: Sequence[str], cut: Cut, runs: Mapping[str, Run | None]) -> dict[str, Run | None]:
    """For each recipe of a gang, the training of all that are in a step with it."""
    left, result = list(gang), dict[str, Run | None]()
    for size in cut.sizes:
        found = [run for name in left[:size] if (run := runs[name]) is not None]
        result |= dict.fromkeys(left[:size], Run.together(found) if found else None)
        del left[:size]
    return result


def rows(run: Run | None, budget: int | None) -> list[tuple[str, str]]:
    """The lines of a plan: name and text."""
    if run is None:
        return [("memory", UNPREDICTED)]
    choice = choose(run, budget)
    if choice.chosen is None:
        return [("memory", f"does not fit: {'; '.join(refusal(run, choice))}")]
    prediction = choice.chosen.prediction
    parts = ", ".join(f"{NAMES.get(name, name)} {shown(size)}" for name, size in prediction.parts.items() if size)
    where = "of the card" if run.cuda else "of this machine"
    count = f" of {len(run.networks)} LoRAs at once" if len(run.networks) > 1 else ""
    limit = f"within {shown(budget)}" if budget is not None else "no budget: give --budget for one"
    found = [
        ("memory", f"{shown(prediction.total)} {where} at the peak of a step{count} ({limit})"),
        ("", parts),
        ("", _fixed(run, choice.chosen.plan, budget)),
        ("", f"plan: {_words(choice, choice.chosen)}"),
    ]
    if budget is None:
        return found
    levels: dict[Recompute, Outcome] = {}
    for outcome in choice.others:  # from the quickest on
        levels.setdefault(outcome.plan.recompute, outcome)
    return found + [("", f"not taken: {shown(o.prediction.total)}, {_words(choice, o)}") for o in levels.values()]


def is_shared(run: Run | None) -> bool:
    """Whether several recipes are in it: then its lines stand once, with the gang."""
    return run is not None and len(run.networks) > 1


def refusals(recipe: Recipe, run: Run, budget: int) -> list[Problem]:
    """Of a recipe that fits by no plan."""
    choice = choose(run, budget)
    return [] if choice.chosen else [Problem(recipe.where("train.batch_size"), *refusal(run, choice))]


def _fixed(run: Run, plan: Plan, budget: int | None) -> str:
    """What is no choice of the plan's."""
    attention = "by a kernel that keeps no softmax" if run.cuda else "block by block, of few pixels whole"
    state = " and ".join(sorted({"8 bits" if name == "adamw8bit" else "float32" for name in run.optimizers}))
    inside = ", within the budget too" if budget is not None else ""
    taped = f"; recorded steps take up to {shown(plan.tapes)} more{inside}" if run.merged and not run.cuda else ""
    return f"always: attention {attention}; the optimiser's state in {state}; the base in float{8 * run.element}{taped}"


def _words(choice: Choice, outcome: Outcome) -> str:
    plan = outcome.plan
    passes = "each batch in one pass" if plan.split == 1 else f"each batch in {plan.split} passes"
    away = "; the text encoder is on the CPU" if plan.away else ""
    times = choice.times(outcome)
    slower = f" ({times:.2f} × the time)" if times > 1 else ""
    return f"{passes}; {AGAIN[plan.recompute]}{away}{slower}"
