"""The same bits on a card every time: `[train] deterministic = true`.

On a CPU training is so anyway: the numbers of threads of its parts are fixed, and nothing is added up by chance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The environment's word for cuBLAS's memory, which it reads when CUDA starts. Without, NVIDIA promises equal bits only
where one stream is used; torch has given it memory of a fixed size itself since 2.10."""


def fixed_workspace() -> None:
    """To be called before CUDA starts. A value that is there stays: both that NVIDIA names will do."""
    os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within, if `wanted`, torch takes operations that add up in a fixed order, and raises RuntimeError for those that
    have no such form. Behind, its settings and the environment are as before, also after an error.

    The settings are the process's: nothing else may use torch meanwhile.
    """
    if not wanted:
        yield
        return
    import torch
    from torch.backends import cudnn
    from torch.utils import deterministic as memory

    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.benchmark, memory.fill_uninitialized_memory, os.environ.get(WORKSPACE)  # type: ignore[attr-defined]
    fixed_workspace()
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark = False  # else the quickest of the moment is taken
        memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it finds errors, and takes time
        yield
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        cudnn.benchmark, memory.fill_uninitialized_memory, workspace = before  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
