"""What each kernel is measured on, and compiled for: the shapes of SD1.5 at 512 px, batch 1.

`CASES` has one entry for each shape of an operation: what runs, its definition, and what each moves through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from lorac.kernels import adamw, geglu, group_norm, layer_norm, lora_linear, loss
from torch import Tensor

LEVELS = ((320, 64), (640, 32), (1280, 16), (1280, 8))
"""Channels and side of the transformers' levels."""


@dataclass(frozen=True)
class Case:
    """An operation on one input. `moved` and `moved_back`: how often forward and backward read or write a tensor of the
    input's size, at least; the latter is 0 where nothing goes back."""

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


def _lora_linear() -> list[Case]:
    """q, k and v of one network and of five."""
    return [_lora_linear_case(networks, side * side, channels) for networks in (1, 5) for channels, side in LEVELS]


def _lora_linear_case(networks: int, rows: int, channels: int) -> Case:
    def own(x: Tensor) -> Tensor:
        y: Tensor = lora_linear.lora_linear(x, *_layer(networks, channels, x.device, x.dtype))
        return y

    def definition(x: Tensor) -> Tensor:
        y: Tensor = lora_linear.lora_linear_definition(x, *_layer(networks, channels, x.device, x.dtype))
        return y

    return Case("lora_linear", (networks, rows, channels), own, definition, 4, 4)


@cache
def _layer(networks: int, channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Weight, factors of rank 128 as they are held for a layer, scales: the same numbers in every dtype."""
    sizes = [(3 * channels, channels), (networks, 3 * 128, channels), (3, networks, channels, 128)]
    drawn = (_drawn(size) * size[-1] ** -0.5 for size in sizes)
    return *(x.to(torch.bfloat16).to(device, dtype) for x in drawn), torch.ones(networks, device=device)


def _drawn(size: tuple[int, ...]) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(2))


def _loss() -> list[Case]:
    """Of one network's sample, and of five. The target is as large as two estimates."""
    return [Case("loss", (batch, 4, 64, 64), _loss_of, _plain_loss, 3, 4) for batch in (1, 5)]


def _loss_of(x: Tensor) -> Tensor:
    loss_B: Tensor = loss.loss(x, *_target(x.shape, x.device))
    return loss_B


def _plain_loss(x: Tensor) -> Tensor:
    loss_B: Tensor = loss.loss_definition(x, *_target(x.shape, x.device))
    return loss_B


@cache
def _target(shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """The target, and weights as large as a loss scale."""
    return _drawn(shape).to(device), torch.full(shape[:1], 4096.0, device=device)


def _adamw() -> list[Case]:
    """The down factors of 16 modules of rank 128. The input is the copy that layers read; seven times a tensor of twice
    its size is read or written besides."""
    sizes = [16 * 128 * channels for channels in (320, 640, 1280)]
    return [Case("adamw", (size,), _step(adamw.adamw), _step(adamw.adamw_definition), 15, 0) for size in sizes]


def _step(update: Callable[..., None]) -> Callable[[Tensor], Tensor]:
    @cache
    def held(size: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """(factors, moments, number of steps), and (gradient, divisor, overflow)."""
        drawn = [_drawn((size,)).to(device) for _ in range(2)]
        zeros = [torch.zeros(size, device=device) for _ in range(2)]
        steps, divisor, overflow = (torch.full((), value, device=device) for value in (0.0, 65536.0, 0.0))
        return [drawn[0], *zeros, steps], [drawn[1], divisor, overflow]

    def step(copy_E: Tensor) -> Tensor:
        flat, (gradient_E, *scalars) = held(len(copy_E), copy_E.device)
        update(adamw.Flat(*flat, copy_E.detach()), gradient_E, 1e-2, *scalars)
        return copy_E

    return step


CASES = {
    "geglu": _geglu,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "lora_linear": _lora_linear,
    "loss": _loss,
    "adamw": _adamw,
}
OLDEST = {"lora_linear": 80}
"""The first card that an operation has kernels for, where that is not Turing: `tl.dot` wants tensor cores."""
