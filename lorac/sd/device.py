"""Where models run, and in which precision."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """`name` is torch's. `dtype` is that of the frozen base: float16 on CUDA (Turing has no bfloat16), else float32."""

    name: str
    dtype: torch.dtype

    def peak_bytes(self) -> int:
        """The most memory used so far: what torch has allocated on a GPU, the process's resident set on a CPU."""
        if self.name == "cuda":
            return torch.cuda.max_memory_allocated()
        try:
            import resource
        except ImportError:  # Windows has no such figure without another package
            return 0
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


CPU = Device("cpu", torch.float32)


def pick() -> Device:
    """The GPU if there is one."""
    return Device("cuda", torch.float16) if torch.cuda.is_available() else CPU


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
