"""Which strength is the best compromise between likeness and everything that a LoRA costs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from lorac.evaluate.figures import Overall, Score

GOOD = ("likeness", "recall")
BAD = ("severed", "leakage", "broken")


def score(overall: Overall) -> float:
    """The geometric mean of likeness, recall, 1 - severed, 1 - leakage and 1 - broken over all prompts.

    It is 0 if any of them fails wholly, and to halve one costs the same whichever it is: from 1.0 to 0.5 as much as
    from 0.2 to 0.1. A broken picture costs more than a severed head, for it has no likeness and no recall either. What
    has no meaning (the recall of prompts that ask for nothing) is left out; where all pictures are broken, severed and
    leakage have none, and 1 - broken is 0, and so is the score.
    """
    good = [measure.value for name in GOOD if (measure := overall.measures[name])]
    bad = [1 - measure.value for name in BAD if (measure := overall.measures[name])]
    factors = good + bad
    return round(prod(factors) ** (1 / len(factors)), 6) if factors else 0.0


def scores(overalls: Sequence[Overall]) -> tuple[Score, ...]:
    """The scores of all strengths but 0, in their order; none without likeness, which is None if no tags make the
    character (styles, captions that exclude nothing): what is left are mostly costs, and the weakest strength, which
    changes least, has the least of them."""
    drawn = [overall for overall in overalls if overall.strength]
    if any(overall.measures["likeness"] is None for overall in drawn):
        return ()
    return tuple(Score(overall.strength, score(overall)) for overall in drawn)


def best(found: Sequence[Score]) -> float | None:
    """The strength with the best score; of equal ones the weakest, which changes least.

    None without scores, and where all are 0: then no strength gives the character.
    """
    if not any(one.score for one in found):
        return None
    return min(found, key=lambda one: (-one.score, abs(one.strength), -one.strength)).strength
