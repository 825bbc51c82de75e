"""LayerNorm (Ba, Kiros & Hinton 2016, arXiv:1607.06450) of rows.

    x̂ = (x − μ) / σ,   σ² = mean (x − μ)² + ε,   y = w x̂ + b,   with means over a row
    dx = (g − mean g − x̂ · mean (g x̂)) / σ,      g = w dy

Weights are frozen: they have no gradient. Forward keeps x, and μ and 1/σ of every row. A program holds whole rows.

Shape suffixes: R rows, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lorac.kernels import gate
from lorac.kernels.gate import blocks, kernel, power_of_two
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

ELEMENTS = 2048
"""Of a program, of which some are beyond the end of a row."""


def layer_norm_definition(x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """What the operation means, in plain PyTorch."""
    return F.layer_norm(x_RC, weight_C.shape, weight_C, bias_C, eps)


@kernel
def _forward(
    x_RC: tl.tensor,
    y_RC: tl.tensor,
    mean_R: tl.tensor,
    rstd_R: tl.tensor,
    weight_C: tl.tensor,
    bias_C: tl.tensor,
    rows: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    C2: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C2)[None, :]
    inside = (row[:, None] < rows) & (channel < C)
    place = row[:, None].to(tl.int64) * C + channel
    x = tl.load(x_RC + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    apart = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(apart * apart, 1) / C + eps)
    weight = tl.load(weight_C + channel, mask=channel < C, other=0.0).to(tl.float32)
    bias = tl.load(bias_C + channel, mask=channel < C, other=0.0).to(tl.float32)
    y = apart * rstd[:, None] * weight + bias
    tl.store(y_RC + place, y.to(y_RC.dtype.element_ty), mask=inside)
    tl.store(mean_R + row, mean, mask=row < rows)
    tl.store(rstd_R + row, rstd, mask=row < rows)


@kernel
def _backward(
    dy_RC: tl.tensor,
    x_RC: tl.tensor,
    plus_RC: tl.tensor,
    dx_RC: tl.tensor,
    mean_R: tl.tensor,
    rstd_R: tl.tensor,
    weight_C: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    C2: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C2)[None, :]
    inside = (row[:, None] < rows) & (channel < C)
    place = row[:, None].to(tl.int64) * C + channel
    mean = tl.load(mean_R + row, mask=row < rows, other=0.0)
    rstd = tl.load(rstd_R + row, mask=row < rows, other=0.0)
    weight = tl.load(weight_C + channel, mask=channel < C, other=0.0).to(tl.float32)
    g = tl.load(dy_RC + place, mask=inside, other=0.0).to(tl.float32) * weight
    x = tl.load(x_RC + place, mask=inside, other=0.0).to(tl.float32)
    straight = (x - mean[:, None]) * rstd[:, None]  # g is zero where there is no x
    mean_g, mean_gx = tl.sum(g, 1) / C, tl.sum(g * straight, 1) / C
    dx = (g - mean_g[:, None] - straight * mean_gx[:, None]) * rstd[:, None]
    if plus_RC is not None:
        dx += tl.load(plus_RC + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_RC + place, dx.to(dx_RC.dtype.element_ty), mask=inside)


def _tile(channels: int) -> dict[str, int]:
    c2 = power_of_two(channels)
    rows = max(1, ELEMENTS // c2)
    return {"C": channels, "ROWS": rows, "C2": c2, "num_warps": min(max(rows * c2 // 512, 1), 16)}


def layer_norm_forward(x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(result, μ, 1/σ) by a kernel, of contiguous rows; the others are (R,) in float32."""
    assert x_RC.is_contiguous()
    rows, channels = x_RC.shape
    y_RC, tile = torch.empty_like(x_RC), _tile(channels)
    mean_R, rstd_R = x_RC.new_empty(2, rows, dtype=torch.float32)
    grid = (blocks(rows, tile["ROWS"]),)
    _forward[grid](x_RC, y_RC, mean_R, rstd_R, weight_C, bias_C, rows, eps, **tile)
    return y_RC, mean_R, rstd_R


def layer_norm_backward(
    dy_RC: Tensor,
    x_RC: Tensor,
    mean_R: Tensor,
    rstd_R: Tensor,
    weight_C: Tensor,
    plus_RC: Tensor | None = None,
) -> Tensor:
    """The gradient of `x_RC`, and `plus_RC` added to it, by a kernel. All rows are contiguous."""
    for given in (dy_RC, x_RC, plus_RC):
        assert given is None or given.is_contiguous()
    rows, channels = x_RC.shape
    dx_RC, tile = torch.empty_like(x_RC), _tile(channels)
    grid = (blocks(rows, tile["ROWS"]),)
    _backward[grid](dy_RC, x_RC, plus_RC, dx_RC, mean_R, rstd_R, weight_C, rows, **tile)
    return dx_RC


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        x_RC = x_RC.contiguous()
        y_RC, mean_R, rstd_R = layer_norm_forward(x_RC, weight_C, bias_C, eps)
        ctx.save_for_backward(x_RC, mean_R, rstd_R, weight_C)
        return y_RC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return layer_norm_backward(grads[0].contiguous(), *ctx.saved_tensors), None, None, None


def layer_norm(x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """`layer_norm_definition`; by kernels nothing is known of weights' gradients."""
    if not gate.opens(x_RC, "layer_norm") or weight_C.requires_grad or bias_C.requires_grad:
        return layer_norm_definition(x_RC, weight_C, bias_C, eps)
    result: Tensor = _LayerNorm.apply(x_RC, weight_C, bias_C, eps)  # type: ignore[no-untyped-call]
    return result
