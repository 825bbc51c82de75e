"""What each kernel is measured on, and compiled for: the shapes of SD1.5 at 512 px, batch 1.

`CASES` has one entry for each shape of an operation: what runs, its definition, and what each moves through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lorac.kernels import geglu
from torch import Tensor

LEVELS = ((320, 64), (640, 32), (1280, 16), (1280, 8))
"""Channels and side of the transformers' levels."""


@dataclass(frozen=True)
class Case:
    """An operation on one input. `moved` and `moved_back`: how often forward and backward read or write a tensor of the
    input's size, at least."""

    operation: str
    shape: tuple[int, ...]
    own: Callable[[Tensor], Tensor]
    definition: Callable[[Tensor], Tensor]
    moved: float
    moved_back: float

    @property
    def name(self) -> str:
        return f"{self.operation} {'×'.join(map(str, self.shape))}"

    def input(self, device: str, dtype: torch.dtype = torch.float16) -> Tensor:
        x = torch.empty(self.shape, device=device, dtype=dtype)
        x = x if device == "meta" else x.normal_(generator=torch.Generator(device).manual_seed(1))
        return x.requires_grad_()

    def bytes_moved(self, backward: bool) -> float:
        elements = 1
        for length in self.shape:
            elements *= length
        return 2 * elements * (self.moved_back if backward else self.moved)


def _geglu() -> list[Case]:
    shapes = [(side * side, 8 * channels) for channels, side in LEVELS]
    return [Case("geglu", shape, geglu.geglu, geglu.geglu_definition, 1.5, 2.5) for shape in shapes]


CASES = {"geglu": _geglu}
