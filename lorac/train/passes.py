"""Which samples go through the model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step


@dataclass(frozen=True)
class Share:
    """What one member has in one pass; `part` of its step's loss is the mean of these samples."""

    member: int
    step: Step
    samples: Sequence[Sample]
    pictures: Pictures
    part: float


def passes(turns: Sequence[tuple[Step, Pictures] | None], split: int) -> list[list[Share]]:
    """The passes of one step, in order; the shares of each are ordered by member, and have equal shapes.

    A batch that is cut into `split` parts, or as many as it has samples, takes as many passes, and so do the batches of
    a step with gradient accumulation.
    """
    shares = [_shares(number, turn, split) for number, turn in enumerate(turns) if turn is not None]
    found: list[list[Share]] = []
    for number in range(max(map(len, shares), default=0)):
        groups: dict[object, list[Share]] = {}
        for share in (own[number] for own in shares if number < len(own)):
            latent_CHW = share.pictures.latent(share.samples[0])
            groups.setdefault((len(share.samples), latent_CHW.shape), []).append(share)
        found += groups.values()
    return found


def _shares(member: int, turn: tuple[Step, Pictures], split: int) -> list[Share]:
    step, pictures = turn
    shares = []
    for batch in step.batches:
        size = -(-len(batch) // split)
        for first in range(0, len(batch), size):
            samples = batch[first : first + size]
            part = len(samples) / len(batch) / len(step.batches)
            shares.append(Share(member, step, samples, pictures, part))
    return shares
