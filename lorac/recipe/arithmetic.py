"""How many samples, steps and epochs a recipe means: kohya-ss/sd-scripts' counts, used by plan and schedule alike.

The reference is sd-scripts' `train_util.py` and `train_network.py`, which the article's numbers come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, inf

from lorac.rng import Stream

POLYNOMIAL_END = 1e-7
"""The learning rate at which `polynomial` ends, whatever it starts from (diffusers' default, kohya's too)."""


def regularisation_order(repeats: Sequence[int], n_train: int) -> list[int]:
    """Which regularisation pictures an epoch shows, as indices, one for each sample.

    `repeats` are those of each regularisation picture, in the order of the listing; `n_train` is the number of
    training samples, repeats included. kohya's rule: pictures join with their repeats until there are `n_train`
    samples, later ones never; when all have joined and there are too few, each in turn gets one repeat more.
    So 400 pictures against 468 samples give 468, and an epoch has twice its length.
    """
    counts = [0] * len(repeats)
    total = 0
    first_pass = True
    while total < n_train and repeats:
        for index, own in enumerate(repeats):
            more = own if first_pass else 1
            counts[index] += more
            total += more
            if total >= n_train:
                break
        first_pass = False
    return [index for index, count in enumerate(counts) for _ in range(count)]


def held_out(pictures: int, split: float, seed: int, subset: int) -> frozenset[int]:
    """Which pictures of a source (by number) are only validated: a share of about `split`, drawn before repeats.

    As many are trained as in kohya (`split_train_val`), which rounds up. There a picture may be both trained and
    validated, because the other part is rounded on its own; here it is trained. One is always trained.
    """
    order = list(range(pictures))
    Stream(seed, "validation", subset).shuffle(order)
    return frozenset(order[ceil(pictures * (1 - split)) :])


def nothing_held_out(split: float, pictures: int) -> str:
    """Cause and remedy where a source of so many pictures, the largest, has none to hold out."""
    remedy = f"give at least {ceil(100 / pictures) / 100:g}" if pictures > 1 else "add pictures"
    return f"{split:g} of {pictures} pictures holds out none for validation; {remedy}"


@dataclass(frozen=True)
class Length:
    """How long a run is. `batches` and `steps_per_epoch` are of one epoch, `steps` are optimiser steps of the run."""

    batches: int
    steps_per_epoch: int
    steps: int

    @property
    def epochs(self) -> int:
        """Epochs that the run begins."""
        return epoch_count(self.steps, self.steps_per_epoch)


def run_length(
    bucket_sizes: Iterable[int], batch_size: int, accumulation: int, epochs: int | None, steps: int | None
) -> Length:
    """The length of a run from the samples of each bucket in an epoch.

    A step takes `accumulation` batches; the last one of an epoch takes what is left, so no step spans two epochs
    (kohya's counts, and what accelerate does at the end of its data).
    """
    batches = batches_per_epoch(bucket_sizes, batch_size)
    steps_per_epoch = ceil(batches / accumulation)
    return Length(batches, steps_per_epoch, total_steps(epochs, steps, steps_per_epoch))


def batches_per_epoch(bucket_sizes: Iterable[int], batch_size: int) -> int:
    """Batches in an epoch: they never mix buckets, so the last one of each bucket may be short."""
    return sum(-(-size // batch_size) for size in bucket_sizes)


def total_steps(epochs: int | None, steps: int | None, steps_per_epoch: int) -> int:
    """Steps of the whole run; `steps` wins, and may end within an epoch."""
    if steps is not None:
        return steps
    if epochs is None:
        raise ValueError("neither epochs nor steps")
    return epochs * steps_per_epoch


def epoch_count(total: int, steps_per_epoch: int) -> int:
    """Epochs that a run of `total` steps begins; the last one may be cut short."""
    return -(-total // steps_per_epoch)


def warmup_steps(warmup: int | float, total: int) -> int:
    """Steps of warm-up: a whole number is a count, a fraction is a share of the run, rounded down."""
    return warmup if isinstance(warmup, int) else int(total * warmup)


def saved_epochs(total: int, steps_per_epoch: int, every_n_epochs: int) -> list[int]:
    """The epochs (from 1) after which a LoRA is written besides the final one: `NAME-000001.safetensors` and so on."""
    if every_n_epochs < 1:
        return []
    return list(range(every_n_epochs, epoch_count(total, steps_per_epoch), every_n_epochs))


@cache
def step_rules(text: str) -> tuple[list[tuple[int, float]], float]:
    """`"1:100,0.1:200,0.01"` as ([(100, 1.0), (200, 0.1)], 0.01): factors before a step, and the one behind the last.

    Raises ValueError if the text is not of this form.
    """
    *pieces, last = text.split(",")
    ends: dict[int, float] = {}
    for piece in pieces:
        factor, end = piece.split(":")
        ends[int(end)] = _factor(factor)
    return sorted(ends.items()), _factor(last)


def _factor(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < inf:
        raise ValueError(f"not a factor: {text}")
    return value
