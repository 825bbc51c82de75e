"""What each kernel is measured on, and compiled for: the shapes of SD1.5 at 512 px, batch 1.

`CASES` has one entry for each shape of an operation: what runs, its definition, and what each moves through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from lorac.kernels import geglu, group_norm, layer_norm
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
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        return x.requires_grad_()

    def bytes_moved(self, backward: bool) -> float:
        elements = 1
        for length in self.shape:
            elements *= length
        return 2 * elements * (self.moved_back if backward else self.moved)


def _geglu() -> list[Case]:
    shapes = [(side * side, 8 * channels) for channels, side in LEVELS]
    return [Case("geglu", shape, geglu.geglu, geglu.geglu_definition, 1.5, 2.5) for shape in shapes]


def _group_norm() -> list[Case]:
    """Those of the most pixels first: (320, 64) and (960, 64) are a resnet's two norms in the last level."""
    shapes = [(320, 64), (640, 64), (960, 64), (640, 32), (1920, 32), (1280, 16), (2560, 16), (1280, 8), (2560, 8)]
    return [_group_norm_case(channels, side) for channels, side in shapes]


def _group_norm_case(channels: int, side: int) -> Case:
    def own(x: Tensor) -> Tensor:
        y: Tensor = group_norm.group_norm(x, *_weights(x, channels), 32, 1e-5, True)
        return y

    def definition(x: Tensor) -> Tensor:
        y: Tensor = group_norm.group_norm_definition(x, *_weights(x, channels), 32, 1e-5, True)
        return y

    return Case("group_norm", (1, channels, side, side), own, definition, 2, 3)


def _layer_norm() -> list[Case]:
    return [_layer_norm_case(side * side, channels) for channels, side in LEVELS] + [_layer_norm_case(77, 768)]


def _layer_norm_case(rows: int, channels: int) -> Case:
    def own(x: Tensor) -> Tensor:
        y: Tensor = layer_norm.layer_norm(x, *_weights(x, channels), 1e-5)
        return y

    def definition(x: Tensor) -> Tensor:
        y: Tensor = layer_norm.layer_norm_definition(x, *_weights(x, channels), 1e-5)
        return y

    return Case("layer_norm", (rows, channels), own, definition, 2, 3)


@cache
def _held(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.ones(channels, device=device, dtype=dtype), torch.zeros(channels, device=device, dtype=dtype)


def _weights(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm, the same at every call."""
    return _held(channels, x.device, x.dtype)


CASES = {"geglu": _geglu, "group_norm": _group_norm, "layer_norm": _layer_norm}
