"""Which trainings gain by being in one gang, and how many memory holds: known before a base is loaded.

In a pass of a gang every member has as many rows. Where the batch of one has another shape than that of another, it
takes a pass of its own, in which the others' rows count for nothing. With random buckets of two sizes, a gang of five
computes 1.9 times the rows that it needs, with three sizes 2.6 times; more than what a gang brings (1.3 to 2 times).
So only those are trained together whose steps have equal shapes: recipes with the same pictures, seed and batch size,
whatever else they vary, and all recipes with one bucket and batch size.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorac.engine.protocol import Work
from lorac.kinds.memory import budget_of, described_one, sizes
from lorac.train.memory.choose import holds
from lorac.train.memory.run import Run
from lorac.train.slices import Slice

MOST = 8
"""LoRAs in a gang. What more would bring was not measured."""
CAUTIOUS = 2
"""LoRAs in a gang where nobody knows how much memory there is."""
SLOWER = 1.05
"""What a plan that saves memory may cost in time, over the best plan: more than that, and a smaller gang is quicker."""
_MEMORY = Path("/proc/meminfo")


def shapes(work: Work, steps: Slice) -> Hashable:
    """(samples, height, width) of the batches of each step, or of one step if all are alike."""
    known = sizes(work)
    found = tuple(tuple((len(batch), known[batch[0].item]) for batch in step.batches) for step in steps.steps())
    return found[:1] if len(set(found)) == 1 else found


@dataclass(frozen=True)
class Cut:
    """How many are trained at once, gang after gang, and why not all together."""

    sizes: Sequence[int]
    reason: str


def fitting(runs: Sequence[Run], budget: int | None) -> int:
    """How many of the first of these are trained at once: as many as fit `budget` without computing much again.

    `budget` is None where nobody knows how much memory there is.
    """
    most = min(CAUTIOUS if budget is None else MOST, len(runs))
    return 1 + bisect(
        range(2, most + 1), False, key=lambda count: not holds(Run.together(runs[:count]), budget, SLOWER)
    )


def cut(runs: Sequence[Run], budget: int | None) -> Cut:
    """As a build cuts those that may go together: into gangs of like sizes."""
    first, sizes, left = fitting(runs, budget), list[int](), list(runs)
    while left:
        rounds = -(-len(left) // fitting(left, budget))
        sizes.append(-(-len(left) // rounds))
        del left[: sizes[-1]]
    reason = f"memory holds {first} at most" if first > 1 else "memory holds no more"
    if first == MOST:
        reason = f"{MOST} at most"
    elif budget is None and first > 1:
        reason = "nothing says how much memory is free"
    return Cut(sizes, reason if len(sizes) > 1 else "")


def of_works(works: Sequence[Work]) -> int:
    """How many of the first of these trainings, which may go together, do."""
    runs = [run for work in works[:MOST] if (run := described_one(work)) is not None]
    budget = budget_of(works[0])
    return fitting(runs, available() if budget is None else budget)


def available() -> int | None:
    """Bytes that this machine has left for programs; None where that is not known without another package."""
    try:
        line = next(line for line in _MEMORY.read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
