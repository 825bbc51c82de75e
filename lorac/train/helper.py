"""A second thread for work that the chain of layers does not wait for, and memory that is not given back.

A small base at batch 1 gains nothing from a second thread within its operations: they are too short, and each would
wait for a thread that something else keeps from its core (a U-Net's forward pass: 2 s instead of 20 ms). Whole pieces
of work beside the chain (gradients of factors, AdamW, merging) are long enough. The numbers of threads
are fixed, so the bits of the result do not depend on the number of cores. A large base has no helper: without, a step
takes 2 % less.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Inline(Executor):
    """Runs everything at once, in the calling thread: a GPU is busy beside the CPU as it is."""

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(work(*args, **kwargs))
        return future


def helper_for(device: torch.device) -> Executor:
    """One thread on a CPU, none for a GPU."""
    if device.type != "cpu":
        return Inline()
    count = torch.get_num_threads()
    helper = ThreadPoolExecutor(1, "lorac-train", initializer=torch.set_num_threads, initargs=(1,))
    helper.submit(torch.get_num_threads).result()
    torch.set_num_threads(count)  # what a thread sets is what all later threads begin with
    return helper


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Operations of the calling thread run on `count` cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Make glibc keep what is freed, up to 512 MB: a step takes and frees the same blocks again and again, and fetching
    them from the system costs a twentieth of the time. Other C libraries are left as they are."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_mmap_threshold, m_trim_threshold = -3, -1
        mallopt(m_mmap_threshold, 32 * 2**20)
        mallopt(m_trim_threshold, 512 * 2**20)
