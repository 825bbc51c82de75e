"""Which strength is the best compromise between likeness and everything that a LoRA costs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from lorac.evaluate.figures import Overall, Score

GOOD = ("likeness", "recall")
BAD = ("severed", "leakage", "broken")


def score(overall: Overall) -> float:
    """The geometric mean of likeness, recall, 1 - severed, 1 - leakage and 1 - broken over all prompts.

    It is 0 if any of them fails wholly, and a share lost costs the same wherever it is lost. What has no meaning (the
    recall of prompts that ask for nothing, the likeness of nobody) is left out.
    """
    good = [measure.value for name in GOOD if (measure := overall.measures[name])]
    bad = [1 - measure.value for name in BAD if (measure := overall.measures[name])]
    factors = good + bad
    return round(prod(factors) ** (1 / len(factors)), 6) if factors else 0.0


def scores(overalls: Sequence[Overall]) -> tuple[Score, ...]:
    """The scores of all strengths but 0, in their order."""
    return tuple(Score(overall.strength, score(overall)) for overall in overalls if overall.strength)


def best(found: Sequence[Score]) -> float | None:
    """The strength with the best score; of equal ones the weakest, which changes least."""
    return min(found, key=lambda one: (-one.score, abs(one.strength), -one.strength)).strength if found else None
