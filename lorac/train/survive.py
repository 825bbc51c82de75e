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

_CPU_WORDS = ("can't allocate memory", "not enough memory")
"""How torch's CPU allocator says it, in a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)


def within_memory(
    attempt: Callable[[int], T],
    split: int,
    largest: int,
    forget: Callable[[], None],
    warn: Callable[[str], None],
    deeper: Callable[[], str | None] = lambda: None,
) -> tuple[T, int]:
    """`attempt(split)`, with `split` doubled as long as memory runs out; returns its result and the split that fits.

    `largest`: samples of the largest batch, beyond which nothing can be split. Then `deeper` is asked to keep less from
    forward to backward, and says in words what it did, or None. `forget` throws away what an attempt has left behind.
    Raises the error when nothing is left to try.
    """
    while True:
        try:
            return attempt(split), split
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The traceback's frames hold the tensors of the pass.
            failed = error.with_traceback(None)
        forget()
        give_back()
        if split < largest:
            split = min(2 * split, largest)
            change = f"each batch of {largest} is done in {split} passes"
        elif (text := deeper()) is not None:
            change = text
        else:
            raise failed
        warn(f"memory ran out in a training step; from now on {change}, with the same result; a --budget avoids this")
        del failed


def give_back() -> None:
    """What the cycle collector and torch's allocator hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
