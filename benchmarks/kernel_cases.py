"""What each kernel is measured on, and compiled for: the shapes of SD1.5 at 512 px, batch 1.

`CASES` has one entry for each shape of an operation: what runs, its definition, and what each moves through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from lorac.kernels import adamw, geglu, lora_linear, loss
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
        return x.requires_grad_()

    def bytes_moved(self, backward: bool) -> float:
        elements = 1
        for length in self.shape:
            elements *= length
        return 2 * elements * (self.moved_back if backward else self.moved)


def _geglu() -> list[Case]:
    shapes = [(side * side, 8 * channels) for channels, side in LEVELS]
    return [Case("geglu", shape, geglu.geglu, geglu.geglu_definition, 1.5, 2.5) for shape in shapes]


Rest = Callable[[str], tuple[Tensor | None, ...]]
"""What else an operation takes, made once on a device."""


def _lora_linear() -> list[Case]:
    """q, k and v of one network and of five, at rank 128, in float16 with factors that are held so."""
    shapes = [(networks, side * side, channels) for networks in (1, 5) for channels, side in LEVELS]
    forms = (lora_linear.lora_linear, lora_linear.lora_linear_definition)
    return [_with("lora_linear", shape, *forms, _layer(*shape[::2]), 4, 4) for shape in shapes]


def _layer(networks: int, channels: int, rank: int = 128) -> Rest:
    sizes = [(3 * channels, channels), (networks, 3 * rank, channels), (3, networks, channels, rank)]

    def rest(device: str) -> tuple[Tensor | None, ...]:
        weights = [torch.randn(size, device=device, dtype=torch.float16) * size[-1] ** -0.5 for size in sizes]
        return *weights, torch.ones(networks, device=device)

    return rest


def _loss() -> list[Case]:
    """Of one network's sample, and of five."""

    def rest(shape: tuple[int, ...]) -> Rest:
        return lambda device: (torch.randn(shape, device=device), torch.ones(len(shape[:1]) * shape[0], device=device))

    # The target has four bytes.
    shapes = [(batch, 4, 64, 64) for batch in (1, 5)]
    return [_with("loss", shape, loss.loss, loss.loss_definition, rest(shape), 3, 4) for shape in shapes]


def _adamw() -> list[Case]:
    """The down factors of 16 layers of 320, 640 and 1280 channels at rank 128; all is float32, and read in float16."""

    def form(update: Callable[..., None]) -> Callable[..., Tensor]:
        def step(gradient_E: Tensor, *held: Tensor) -> Tensor:
            *flat, rate, divisor, overflow = held
            update(adamw.Flat(*flat), gradient_E, rate, divisor, overflow)
            return flat[0]

        return step

    def rest(elements: int) -> Rest:
        def made(device: str) -> tuple[Tensor | None, ...]:
            flat = [torch.zeros(elements, device=device) for _ in range(3)]
            step, rate, divisor, overflow = (torch.full((), value, device=device) for value in (0.0, 1e-4, 65536.0, 0.0))
            return *flat, step, torch.zeros(elements, device=device, dtype=torch.float16), rate, divisor, overflow

        return made

    forms = form(adamw.adamw), form(adamw.adamw_definition)
    sizes = [16 * 128 * channels for channels in (320, 640, 1280)]
    # Seven of four bytes and the copy, where the input, a gradient, has four.
    return [_with("adamw", (size,), *forms, rest(size), 7.5, 0, torch.float32) for size in sizes]


CASES = {"geglu": _geglu, "lora_linear": _lora_linear, "loss": _loss, "adamw": _adamw}
