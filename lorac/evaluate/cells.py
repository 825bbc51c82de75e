"""From what was seen in all pictures of a recipe to its figures.

Shape suffixes: N pictures, T tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorac.evaluate import figures, trade_off
from lorac.evaluate.features import Floats
from lorac.evaluate.measures import Asked, Shots, measures, seen, shots
from lorac.evaluate.tags import Bools, Words, prompt_tags

OFTEN = 0.5
"""The share of the training pictures from which an excluded tag makes the character."""
SELDOM = 0.1
"""The share of the training pictures from which a tag can leak."""


@dataclass(frozen=True)
class Looks:
    """What was measured in some pictures: the tagger's probabilities, (N, T), and rows of features."""

    probabilities: Floats
    features: Floats


@dataclass(frozen=True)
class Source:
    """A folder of training pictures, the words that call it, and the tags that its captions leave out."""

    looks: Looks
    triggers: Sequence[str]
    excluded: Sequence[str]


@dataclass(frozen=True)
class Evaluation:
    """Everything that the figures follow from. `cells`: prompts-major, each with strength 0 first.

    character: the tags that make the character, or None for those that the rules exclude and that are seen in at least
    half of the training pictures. preferred: the recipe's own choice of a strength.
    """

    words: Words
    count: int
    threshold: float
    prompts: Sequence[tuple[str, str]]
    strengths: Sequence[float]
    cells: Sequence[Looks]
    sources: Sequence[Source]
    character: Sequence[str] | None
    preferred: float | None
    held_out: figures.HeldOut | None


def evaluated(e: Evaluation) -> figures.Figures:
    """The figures."""
    of_sources = [seen(e.words, source.looks.probabilities, e.threshold) for source in e.sources]
    trained_NT = np.concatenate(of_sources)
    shares = [float(share) for share in trained_NT.mean(axis=0)]
    identity = _identity(e, shares)
    called = _called(e, of_sources)
    asked = [_asked(e.words, prompt, called, identity) for prompt, _ in e.prompts]
    training = sorted(
        (t for t in range(len(shares)) if shares[t] >= SELDOM), key=lambda t: (-shares[t], e.words.names[t])
    )
    grid = _grid(e)

    def of(prompts: Sequence[int], column: int) -> figures.Overall:
        chosen = [(asked[p], grid[p][column], grid[p][0]) for p in prompts]
        return figures.Overall(e.strengths[column], *measures(e.words, chosen, identity, training))

    everything = range(len(e.prompts))
    cells = [(p, of([p], column)) for p in everything for column in range(len(e.strengths))]
    overall = tuple(of(everything, column) for column in range(len(e.strengths)))
    scores = trade_off.scores(overall)
    return figures.Figures(
        count=e.count,
        threshold=e.threshold,
        identity=tuple(e.words.names[t] for t in identity),
        training_tags={e.words.names[t]: round(shares[t], 6) for t in training},
        strengths=tuple(e.strengths),
        prompts=tuple(
            figures.Prompt(prompt, negative, tuple(e.words.names[t] for t in asked[p].wanted))
            for p, (prompt, negative) in enumerate(e.prompts)
        ),
        cells=tuple(figures.Cell(p, one.strength, one.measures, one.leaked) for p, one in cells),
        overall=overall,
        held_out=e.held_out,
        trade_off=scores,
        preferred_weight=trade_off.best(scores) if e.preferred is None else e.preferred,
    )


def _grid(e: Evaluation) -> list[list[Shots]]:
    """The pictures by prompt and column."""
    columns = len(e.strengths)
    training = np.concatenate([source.looks.features for source in e.sources])
    base = np.concatenate([looks.features for looks in e.cells[::columns]])
    made = [shots(e.words, c.probabilities, e.threshold, c.features, training, base) for c in e.cells]
    return [made[first : first + columns] for first in range(0, len(made), columns)]


def _identity(e: Evaluation, shares: Sequence[float]) -> list[int]:
    if e.character is not None:
        return e.words.known(e.character)
    excluded = e.words.known(tag for source in e.sources for tag in source.excluded)
    apart = e.words.apart
    return [column for column in excluded if shares[column] >= OFTEN and column not in apart]


def _called(e: Evaluation, of_sources: Sequence[Bools]) -> dict[str, list[int]]:
    """What a trigger word stands for that only some of the sources have, such as the name of an outfit: the tags that
    their rules exclude and that are seen in at least half of their pictures."""
    found: dict[str, list[int]] = {}
    for trigger in {trigger.casefold(): None for source in e.sources for trigger in source.triggers}:
        having = [trigger in map(str.casefold, source.triggers) for source in e.sources]
        if all(having):
            continue
        own_NT = np.concatenate([seen_NT for seen_NT, has in zip(of_sources, having, strict=True) if has])
        left_out = e.words.known(t for s, has in zip(e.sources, having, strict=True) if has for t in s.excluded)
        apart = e.words.apart
        found[trigger] = [t for t in left_out if own_NT[:, t].mean() >= OFTEN and t not in apart]
    return found


def _asked(words: Words, prompt: str, called: dict[str, list[int]], identity: Sequence[int]) -> Asked:
    tags = prompt_tags(prompt)
    columns = words.known(tags)
    for tag in tags:
        columns += [column for column in called.get(tag.casefold(), ()) if column not in columns]
    apart = words.apart | set(identity)
    return Asked([column for column in columns if column not in apart], frozenset(columns))
