"""The memory that torch gives to cuBLAS: a workspace for each thread and stream that multiplies, kept for good.

It comes from torch's allocator, so `max_memory_allocated` counts it. The size is that of torch 2.10 to 2.13,
`parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper, 8.125 MiB on other cards, or
what the environment says. (Later ones of these have 32 MiB on Blackwell too, which is taken for all of them.) cuBLASLt
works in the same memory; in torch 2.10 it has 1 MiB of its own beside, which is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ENVIRONMENT = "CUBLAS_WORKSPACE_CONFIG"
_LARGE, _USUAL = 8 * 4096 * 2**10, (2 * 4096 + 8 * 16) * 2**10
_BLOCKS = re.compile(":([0-9]+):([0-9]+)")


def workspace(capability: tuple[int, int] | None, environment: Mapping[str, str], deterministic: bool = False) -> int:
    """Bytes of one. `capability` of the card; None: as of those up to Ada. `deterministic`: with the environment that
    `lorac.train.deterministic` sets."""
    config = environment.get(ENVIRONMENT, ":4096:8" if deterministic else "")
    blocks = _BLOCKS.findall(config)
    if blocks:
        return sum(int(kib) * int(count) * 2**10 for kib, count in blocks)
    return _LARGE if capability is not None and capability[0] >= 9 else _USUAL


def workspaces(text: bool, away: bool) -> int:
    """How many there are. Passes are on a stream of their own: forward on the caller's thread and backward on
    autograd's. A text encoder that is not trained is on the usual stream, where it is not away."""
    return 2 if text or away else 3
