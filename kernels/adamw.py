"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over one contiguous buffer, with the copy that layers read.

    g  = gradient / divisor          p  = p − lr · weight_decay · p
    m  = m + (1 − β₁) (g − m)        v  = β₂ v + (1 − β₂) g²
    p  = p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

in the order of torch's fused kernel (ATen/native/cuda/fused_adam_utils.cuh). Where `overflow` is 1 nothing changes, the
count of steps t included. What a step finds out is read on the device, which nobody waits for: t, the divisor (loss
scale times clipping) and `overflow`. A launch before counts and computes both corrections, in float64: 1 − β₂ is 0.001,
and of that float32 has no more than four digits left.

Shape suffixes: E elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lorac.kernels import gate
from lorac.kernels.gate import blocks, kernel
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 1024
LEAST = 1e-300
"""In place of a β of 0, which has no logarithm."""


@dataclass(frozen=True)
class Settings:
    """torch's names and values."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


@dataclass
class Flat:
    """What one AdamW changes: the factors, their moments, the number of steps (a float32 scalar), and the factors as
    layers read them, in another dtype, if they do. All but the number are (E,)."""

    factors: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None = None


def adamw_definition(
    flat: Flat,
    gradient_E: Tensor,
    rate: float,
    divisor: Tensor | None = None,
    overflow: Tensor | None = None,
    settings: Settings | None = None,
) -> None:
    """What the operation means, in plain PyTorch. `divisor` and `overflow` are scalars on the device."""
    settings = settings or Settings()
    beta1, beta2 = settings.betas
    good = torch.ones_like(flat.step) if overflow is None else 1 - overflow
    flat.step.add_(good)
    correction1, correction2 = 1 - beta1 ** flat.step.double(), 1 - beta2 ** flat.step.double()
    g_E = gradient_E if divisor is None else gradient_E / divisor
    p_E = flat.factors - rate * settings.weight_decay * flat.factors
    m_E = flat.exp_avg + (1 - beta1) * (g_E - flat.exp_avg)
    v_E = beta2 * flat.exp_avg_sq + (1 - beta2) * g_E.square()
    below_E = v_E.sqrt() / correction2.sqrt().to(v_E.dtype) + settings.eps
    p_E = p_E - (rate / correction1).to(p_E.dtype) * m_E / below_E
    for held_E, new_E in ((flat.factors, p_E), (flat.exp_avg, m_E), (flat.exp_avg_sq, v_E)):
        held_E.copy_(torch.where(good == 1, new_E, held_E))
    if flat.copy is not None:
        flat.copy.copy_(flat.factors)


@kernel
def _count(
    step: tl.tensor, overflow: tl.tensor, corrections: tl.tensor, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr
) -> None:
    """Of one program: the step's number, 1 − β₁ᵗ and √(1 − β₂ᵗ)."""
    t = tl.load(step) + 1.0
    if overflow is not None:
        t -= tl.load(overflow)
    tl.store(step, t)
    t = tl.maximum(t, 1.0).to(tl.float64)  # nothing is divided by 0 where the first step overflows
    tl.store(corrections, (1.0 - tl.exp(t * LOG_BETA1)).to(tl.float32))
    tl.store(corrections + 1, tl.sqrt(1.0 - tl.exp(t * LOG_BETA2)).to(tl.float32))


@kernel
def _update(
    factor_E: tl.tensor,
    gradient_E: tl.tensor,
    exp_avg_E: tl.tensor,
    exp_avg_sq_E: tl.tensor,
    copy_E: tl.tensor,
    corrections: tl.tensor,
    rate: tl.tensor,
    divisor: tl.tensor,
    overflow: tl.tensor,
    elements: tl.tensor,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    DECAY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if overflow is not None:
        elements = tl.where(tl.load(overflow) == 0.0, elements, 0)
    inside = at < elements
    p = tl.load(factor_E + at, mask=inside)
    g = tl.load(gradient_E + at, mask=inside)
    m = tl.load(exp_avg_E + at, mask=inside)
    v = tl.load(exp_avg_sq_E + at, mask=inside)
    if divisor is not None:
        g = g / tl.load(divisor)
    p = p - rate * DECAY * p
    m = m + (1.0 - BETA1) * (g - m)
    v = BETA2 * v + (1.0 - BETA2) * g * g
    p = p - rate / tl.load(corrections) * m / (tl.sqrt(v) / tl.load(corrections + 1) + EPS)
    tl.store(factor_E + at, p, mask=inside)
    tl.store(exp_avg_E + at, m, mask=inside)
    tl.store(exp_avg_sq_E + at, v, mask=inside)
    if copy_E is not None:
        tl.store(copy_E + at, p.to(copy_E.dtype.element_ty), mask=inside)


def adamw(
    flat: Flat,
    gradient_E: Tensor,
    rate: float,
    divisor: Tensor | None = None,
    overflow: Tensor | None = None,
    settings: Settings | None = None,
) -> None:
    """`adamw_definition` by two launches where kernels run. All but the copy is float32."""
    settings = settings or Settings()
    if not gate.opens(flat.factors, "adamw"):
        adamw_definition(flat, gradient_E, rate, divisor, overflow, settings)
        return
    flats = [flat.factors, gradient_E, flat.exp_avg, flat.exp_avg_sq]
    assert all(flat_E.is_contiguous() and flat_E.dtype == torch.float32 for flat_E in flats)
    assert flat.copy is None or flat.copy.is_contiguous()
    corrections = flat.step.new_empty(2)
    logs = [math.log(max(beta, LEAST)) for beta in settings.betas]
    _count[(1,)](flat.step, overflow, corrections, *logs, num_warps=1)
    _update[(blocks(gradient_E.numel(), BLOCK),)](
        *flats,
        flat.copy,
        corrections,
        rate,
        divisor,
        overflow,
        gradient_E.numel(),
        *settings.betas,
        settings.eps,
        settings.weight_decay,
        BLOCK,
    )
