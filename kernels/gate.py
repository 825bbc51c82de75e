"""What the kernels of this folder have in common: when they may run, and how Triton gets them.

A file of this folder is one operation: its formula, `X_definition` in plain PyTorch, the kernels, functions that launch
them, and a form with autograd. Whoever uses an operation asks `opens(x)` first: nobody needs Triton, which comes with
torch for CUDA on Linux alone, and without it (or on a CPU, or on a card older than Turing) the plain form runs.

Triton takes 0.3 s to import and is not there everywhere, so kernels are marked `@kernel` instead of `@triton.jit` and
become Triton's at their first launch. With TRITON_INTERPRET=1 in the environment that is its interpreter, for tensors
on a CPU: then no gate opens by itself, and the tests open them.

Rules for kernels: arithmetic in float32; no atomics, so that results have the same bits every time; `tl.dot` only
behind `dots(x)`, since Triton has no tensor cores before Ampere (triton-lang/triton#5066), and of bfloat16 only after a
cast to float32 where it may be interpreted (the interpreter gets it wrong).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache, cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

TURING = (7, 5)
AMPERE = (8, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UNUSED = {"lora_linear"}
"""Operations that training does in the plain form although they have kernels: where `python -m benchmarks.ablation
--device cuda` shows no gain. No card has measured `lora_linear` yet, and cuBLAS is hard to beat: what the kernel saves,
one more round of y through memory, the larger caches may hide."""


def opens(x: Tensor, operation: str = "") -> bool:
    """Whether kernels, those of an operation, run on this tensor: it lies on a card from Turing on, Triton is there and
    knows its type. What torch.compile sees is the definition, of which it makes a kernel itself."""
    if operation in UNUSED or torch.compiler.is_compiling():
        return False
    return x.is_cuda and x.dtype in DTYPES and _capability(x.device) >= TURING


def dots(x: Tensor) -> bool:
    """Whether kernels with `tl.dot` run on this tensor."""
    return opens(x) and _capability(x.device) >= AMPERE


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """The card's, or (0, 0) where Triton is not for it."""
    if torch.version.cuda is None or find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
        return (0, 0)
    try:
        _first[(1,)](torch.zeros(1, device=device))
    except Exception as why:  # Triton calls a C compiler with Python's headers
        warnings.warn(f"Triton's kernels are not used, which makes training slower: {why}", stacklevel=2)
        return (0, 0)
    return torch.cuda.get_device_capability(device)


class Kernel:
    """A function in Triton's language. `kernel[grid](…)` launches it; another kernel may call it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        launch: Callable[..., Any] = self.translated[grid]
        return launch

    def __call__(self, *_: Any) -> Any:
        raise TypeError(f"{self.function.__name__} is launched by [grid](…), or called by a kernel")

    @cached_property
    def translated(self) -> Any:
        """As Triton has it. In its module `tl` is Triton's language from now on, and the kernels that it calls are
        Triton's too."""
        import triton
        import triton.language

        names = self.function.__globals__
        names["tl"] = triton.language
        for name in self.function.__code__.co_names:
            if isinstance(names.get(name), Kernel):
                names[name] = names[name].translated
        return triton.jit(self.function)


def kernel(function: Callable[..., Any]) -> Kernel:
    """In place of `@triton.jit`."""
    return Kernel(function)


def _one(x: tl.tensor) -> None:
    tl.store(x, 1.0)


_first = Kernel(_one)
"""Launched to see whether Triton can make kernels here."""


def blocks(length: int, block: int) -> int:
    """How many blocks cover a length."""
    return -(-length // block)


def power_of_two(length: int) -> int:
    """The least one that is not below."""
    return 1 << max(length - 1, 0).bit_length()
