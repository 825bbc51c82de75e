"""A step that runs out of memory all the same is done again in smaller passes, with the same result.

Predictions leave out what a library takes for itself and how memory is cut up, so the last megabytes are found out by
trying. A pass changes nothing but gradients, so what it has done so far can be thrown away.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed", "bad_alloc")
"""How torch's CPU allocator, CUDA and its libraries say it, in a RuntimeError."""


class UpdateLost(MemoryError):
    """Memory ran out while factors were updated: some are new and others are not, so only a snapshot helps."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def within_memory(
    attempt: Callable[[int], T],
    split: int,
    largest: int,
    forget: Callable[[], bool],
    warn: Callable[[str], None],
) -> tuple[T, int]:
    """`attempt(split)`, with `split` doubled as long as memory runs out; returns its result and the split that fits.

    `largest`: samples of the largest batch, beyond which nothing can be split. `forget` throws away what an attempt has
    left behind; where it returns True, that may have been what was in the way, and the same is tried once more. Raises
    the error when nothing is left to try.
    """
    while True:
        try:
            return attempt(split), split
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, UpdateLost) or not is_out_of_memory(error):
                raise
            # The traceback's frames hold the tensors of the pass.
            failed = error.with_traceback(None)
        made_room = forget()
        give_back()
        if made_room:
            continue
        if split >= largest:
            raise failed
        split = min(2 * split, largest)
        warn(
            f"memory ran out in a training step; from now on each batch of {largest} is done in {split} passes, "
            "with the same result; a --budget avoids this"
        )
        del failed


def give_back() -> None:
    """What the cycle collector and torch's allocator hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
