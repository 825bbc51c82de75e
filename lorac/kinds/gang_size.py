"""Which trainings gain by being in one gang, and how many memory holds: known before a base is loaded.

In a pass of a gang every member has as many rows. Where the batch of one has another shape than that of another, it
takes a pass of its own, in which the others' rows count for nothing. With random buckets of two sizes, a gang of five
computes 1.9 times the rows that it needs, with three sizes 2.6 times; more than what a gang brings (1.3 to 2 times).
So only those are trained together whose steps have equal shapes: recipes with the same pictures, seed and batch size,
whatever else they vary, and all recipes with one bucket and batch size.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

from lorac.engine.protocol import Work
from lorac.kinds.memory import budget_of, described, sizes
from lorac.train.memory.choose import choose
from lorac.train.memory.run import Run
from lorac.train.slices import Slice

MOST = 8
"""LoRAs in a gang. What more would bring was not measured."""
SLOWER = 1.05
"""What a plan that saves memory may cost in time, over the best plan: more than that, and a smaller gang is quicker."""
_MEMORY = Path("/proc/meminfo")


def shapes(work: Work, steps: Slice) -> Hashable:
    """(samples, height, width) of the batches of each step, or of one step if all are alike."""
    known = sizes(work)
    found = tuple(tuple((len(batch), known[batch[0].item]) for batch in step.batches) for step in steps.steps())
    return found[:1] if len(set(found)) == 1 else found


def fitting(run: Run | None, budget: int | None) -> int:
    """How many LoRAs like that of `run` are trained at once: as many as fit `budget` without computing much again.

    `run` is None for what cannot be predicted, `budget` where nothing limits memory or its size is not known.
    """
    if run is None or budget is None:
        return MOST
    for count in range(MOST, 1, -1):
        choice = choose(replace(run, networks=run.networks[:1] * count), budget)
        if choice.chosen is not None and choice.times(choice.chosen) <= SLOWER:
            return count
    return 1


def of_work(work: Work) -> int:
    """How many LoRAs like that of this training are trained at once."""
    budget = budget_of(work)
    return fitting(described([work]), available() if budget is None else budget)


def available() -> int | None:
    """Bytes that this machine has left for programs; None where that is not known without another package."""
    try:
        line = next(line for line in _MEMORY.read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
