"""How many samples, steps and epochs a recipe means: kohya-ss/sd-scripts' counts, used by plan and schedule alike.

The reference is sd-scripts' `train_util.py` and `train_network.py`, which the article's numbers come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def batches_per_epoch(bucket_sizes: Iterable[int], batch_size: int) -> int:
    """Steps in an epoch: batches never mix buckets, so the last batch of each bucket may be short."""
    return sum(-(-size // batch_size) for size in bucket_sizes)


def total_steps(epochs: int | None, steps: int | None, batches: int) -> int:
    """Steps of the whole run; `steps` wins, and may end within an epoch. `batches` is the length of an epoch."""
    if steps is not None:
        return steps
    if epochs is None:
        raise ValueError("neither epochs nor steps")
    return epochs * batches


def epoch_count(total: int, batches: int) -> int:
    """Epochs that a run of `total` steps begins; the last one may be cut short."""
    return -(-total // batches)


def warmup_steps(warmup: int | float, total: int) -> int:
    """Steps of warm-up: a whole number is a count, a fraction is a share of the run, rounded down."""
    return warmup if isinstance(warmup, int) else int(total * warmup)


def saved_epochs(total: int, batches: int, every_n_epochs: int) -> list[int]:
    """The epochs (from 1) after which a LoRA is written besides the final one: `NAME-000001.safetensors` and so on."""
    if every_n_epochs < 1:
        return []
    return list(range(every_n_epochs, epoch_count(total, batches), every_n_epochs))
