"""What each measure of `figures.NAMES` is, over the pictures of one cell or of all prompts at one strength.

All but `similarity`, `sameness` and `broken` are only as good as the tagger. In a broken picture nothing counts as
seen, for taggers see a great deal in noise. So it counts as 0 in likeness and recall: noise is like nobody, and nothing
of the prompt is in it. Rates of what should not be seen (severed, leakage, split_view, closed_eyes) are over the
pictures that are not broken, and `n` is their number: a run of nothing but noise has None there, and not 0 %.
Intervals take pictures for independent of each other, those of different prompts too, which begin with equal noise;
they say how far other noise would move a figure, and nothing about other prompts, another training seed or the tagger.

Shape suffixes: N pictures, M training pictures, T tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorac.evaluate import intervals
from lorac.evaluate.features import Floats, broken, similarities
from lorac.evaluate.figures import Leaked, Measure
from lorac.evaluate.tags import Bools, Words

SPLIT = ("split view", "multiple views")
CLOSED = "closed eyes"


@dataclass(frozen=True)
class Shots:
    """The pictures of one prompt at one strength, by their numbers: which noise a picture starts from."""

    seen: Bools
    """(N, T): what the tagger sees; nothing in a broken picture, and no ratings."""
    broken: Bools
    """(N,)"""
    nearest: Floats
    """(N,): similarity to the nearest training picture."""
    alike: Floats
    """(N, N): similarity to one another."""

    @property
    def shown(self) -> Bools:
        """What the tagger sees in the pictures that are not broken, (N - broken, T)."""
        return self.seen[~self.broken]


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for, as columns of the tagger."""

    wanted: Sequence[int]
    """Tags of the prompt, and what its triggers stand for, but for people, names and what makes the character."""
    given: frozenset[int]
    """All tags of the prompt, and what its triggers stand for."""


def shots(
    words: Words, probabilities_NT: Floats, threshold: float, own: Floats, training: Floats, base: Floats
) -> Shots:
    """From the tagger's probabilities and rows of features: of the pictures, the training pictures, and the base's."""
    broken_N = broken(own, base)
    seen_NT = seen(words, probabilities_NT, threshold) & ~broken_N[:, None]
    near_NM = similarities(own, training)
    nearest_N = near_NM.max(axis=1) if len(training) else np.zeros(len(own))
    return Shots(seen_NT, broken_N, nearest_N, similarities(own, own))


def seen(words: Words, probabilities_NT: Floats, threshold: float) -> Bools:
    """Which tags reach the threshold, (N, T); ratings never do."""
    tags_T = np.zeros(probabilities_NT.shape[1], np.bool_)
    tags_T[list(words.index.values())] = True
    return np.asarray((probabilities_NT >= threshold) & tags_T, np.bool_)


def measures(
    words: Words,
    cells: Sequence[tuple[Asked, Shots, Shots]],
    identity: Sequence[int],
    training: Sequence[int],
) -> tuple[dict[str, Measure | None], tuple[Leaked, ...]]:
    """All measures over some prompts, each with what it asks for, its pictures, and those without the LoRA; and what
    leaked. `identity` and `training`: the columns of the character's tags and of the training pictures' tags.

    Over all pictures: likeness: mean share of the character's tags seen. recall: mean share of a prompt's wanted tags
    seen. similarity: mean of the similarity to the nearest training picture (`features.similarities`). sameness: mean
    similarity of two pictures of a cell. broken: rate of empty and noisy pictures (`features.broken`).

    Over those that are not broken, None where all are: severed: rate of heads without a body (`tags.Words.severed`).
    split_view: rate of pictures with "split view" or "multiple views". closed_eyes: its rate where the prompt does not
    ask for it. leakage: `intervals.excess` over the training pictures' tags that are neither asked for, nor the
    character's, nor a number of people; as it compares a picture with the one from the same noise without the LoRA,
    it is over the pairs of which neither is broken.
    """
    found: dict[str, Measure | None] = {}
    shown_NT = np.concatenate([shot.shown for _, shot, _ in cells])
    found["severed"] = _rate(words.severed(shown_NT))
    found["likeness"] = intervals.mean([s for _, shot, _ in cells for s in _shares(shot.seen, identity)])
    found["recall"] = intervals.mean([s for asked, shot, _ in cells for s in _shares(shot.seen, asked.wanted)])
    found["leakage"], leaked = _leakage(words, cells, set(identity) | words.apart, training)
    split = words.known(SPLIT)
    found["split_view"] = _rate(np.asarray(shown_NT[:, split].any(axis=1), np.bool_)) if split else None
    found["closed_eyes"] = _closed(words, cells)
    found["similarity"] = intervals.mean([float(s) for _, shot, _ in cells for s in shot.nearest])
    found["sameness"] = intervals.mean_pair([shot.alike for _, shot, _ in cells])
    found["broken"] = _rate(np.concatenate([shot.broken for _, shot, _ in cells]))
    return found, leaked


def _rate(hits_N: Bools) -> Measure | None:
    return intervals.rate(int(hits_N.sum()), len(hits_N))


def _shares(seen_NT: Bools, columns: Sequence[int]) -> list[float]:
    """For each picture the share of some tags that is seen; nothing without tags."""
    return [float(share) for share in seen_NT[:, list(columns)].mean(axis=1)] if columns else []


def _closed(words: Words, cells: Sequence[tuple[Asked, Shots, Shots]]) -> Measure | None:
    column = words.known([CLOSED])
    unasked = [shot.shown[:, column[0]] for asked, shot, _ in cells if column and column[0] not in asked.given]
    return _rate(np.concatenate(unasked)) if unasked else None


def _leakage(
    words: Words, cells: Sequence[tuple[Asked, Shots, Shots]], expected: set[int], training: Sequence[int]
) -> tuple[Measure | None, tuple[Leaked, ...]]:
    """The measure, and every tag that is seen more often with the LoRA than without, the largest excess first."""
    columns = [column for column in training if column not in expected]
    parts = []
    for asked, shot, off in cells:
        whole_N = ~(shot.broken | off.broken)
        free_T = np.array([column not in asked.given for column in columns], np.bool_)
        pairs = (shot.seen[whole_N][:, columns], off.seen[whole_N][:, columns])
        parts.append((*pairs, np.tile(free_T, (len(pairs[0]), 1))))
    with_NT, without_NT, counts_NT = (np.concatenate(part) for part in zip(*parts, strict=True))
    leaked = []
    for number, column in enumerate(columns):
        counts_N = counts_NT[:, number]
        if counts_N.any():
            rate, without = (float(s_NT[counts_N, number].mean()) for s_NT in (with_NT, without_NT))
            if rate > without:
                leaked.append(Leaked(words.names[column], round(rate, 6), round(without, 6)))
    leaked.sort(key=lambda leak: (leak.without - leak.rate, leak.tag))
    return intervals.excess(with_NT, without_NT, counts_NT), tuple(leaked)
