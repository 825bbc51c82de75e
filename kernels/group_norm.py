"""GroupNorm (Wu & He 2018, arXiv:1803.08494) of pictures with channels last, and SiLU after it if asked for.

    x̂ = (x − μ) / σ,   σ² = mean (x − μ)² + ε,   with means over the pixels and channels of a group
    z = w x̂ + b,       y = z · s,   s = 1 / (1 + exp(−z))                      (y = z without SiLU)
    g = dy · s (1 + z (1 − s)) · w                                             (g = dy · w without SiLU)
    dx = (g − mean g − x̂ · mean (g x̂)) / σ

Weights are frozen: they have no gradient. Forward keeps x, and μ and 1/σ of every group.

A group's values are spread over the whole picture, and there are few groups: one program for each would leave most of a
card idle. So pictures are cut into chunks of pixels. A first kernel computes moments of every chunk and group; a second
merges them, every program for itself and in the same order (Chan, Golub & LeVeque 1983, so that no variance is the
difference of two large numbers), and normalises a chunk. Backward has the same two stages, with sums of g and of g x̂.

Shape suffixes: B batch, C channels, H height, W width, G groups, K chunks. A tile is (pixels, groups, channels of one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lorac.kernels import gate
from lorac.kernels.gate import blocks, kernel, power_of_two
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

ELEMENTS = 4096
"""Of a tile, of which some are beyond the last channel of a group."""
CHUNKS = 64
"""Of a picture at most, as long as tiles may grow: every program reads the moments of all of them."""


def group_norm_definition(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """What the operation means, in plain PyTorch."""
    y_BCHW = F.group_norm(x_BCHW, groups, weight_C, bias_C, eps)
    return F.silu(y_BCHW) if silu else y_BCHW


@kernel
def _place(
    pixels: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    P2: tl.constexpr,
) -> tl.tensor:
    """Of a tile's elements: (place in the batch, channel, whether it is one)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None, None]
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[None, :, None]
    one = tl.arange(0, P2)[None, None, :]
    channel = group * WIDTH + one
    picture = tl.program_id(2).to(tl.int64) * pixels
    return (picture + pixel) * C + channel, channel, (pixel < pixels) & (group * WIDTH < C) & (one < WIDTH)


@kernel
def _chunk(C: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr) -> tl.tensor:
    """Of a tile's groups in its own chunk: (place among all parts, whether there is such a group)."""
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    part = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * (C // WIDTH) + group
    return part, group * WIDTH < C


@kernel
def _chunks(C: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, K2: tl.constexpr) -> tl.tensor:
    """Of a tile's groups in all chunks: (chunk, place among all parts, whether there is such a part)."""
    chunk = tl.arange(0, K2)[:, None]
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[None, :]
    part = (tl.program_id(2) * tl.num_programs(0) + chunk) * (C // WIDTH) + group
    return chunk, part, (chunk < tl.num_programs(0)) & (group * WIDTH < C)


@kernel
def _total(x: tl.tensor) -> tl.tensor:
    """Of each group of a tile."""
    return tl.sum(tl.sum(x, 2), 0)


@kernel
def _moments(
    x: tl.tensor,
    mean_BKG: tl.tensor,
    square_BKG: tl.tensor,
    pixels: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    P2: tl.constexpr,
) -> None:
    """Of each chunk: the mean, and the sum of squares of what differs from it."""
    place, _, inside = _place(pixels, C, WIDTH, PIXELS, GROUPS, P2)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(PIXELS, pixels - tl.program_id(0) * PIXELS) * WIDTH
    mean = _total(values) / count
    apart = tl.where(inside, values - mean[None, :, None], 0.0)
    part, there = _chunk(C, WIDTH, GROUPS)
    tl.store(mean_BKG + part, mean, mask=there)
    tl.store(square_BKG + part, _total(apart * apart), mask=there)


@kernel
def _normalise(
    x: tl.tensor,
    y: tl.tensor,
    mean_BKG: tl.tensor,
    square_BKG: tl.tensor,
    mean_BG: tl.tensor,
    rstd_BG: tl.tensor,
    weight_C: tl.tensor,
    bias_C: tl.tensor,
    pixels: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    P2: tl.constexpr,
    K2: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    chunk, part, there = _chunks(C, WIDTH, GROUPS, K2)
    count = tl.where(there, tl.minimum(PIXELS, pixels - chunk * PIXELS) * WIDTH, 0).to(tl.float32)
    means = tl.load(mean_BKG + part, mask=there, other=0.0)
    mean = tl.sum(count * means, 0) / (pixels * WIDTH)
    apart = means - mean[None, :]
    squares = tl.load(square_BKG + part, mask=there, other=0.0) + count * apart * apart
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / (pixels * WIDTH) + eps)
    if tl.program_id(0) == 0:
        own = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
        tl.store(mean_BG + tl.program_id(2) * (C // WIDTH) + own, mean, mask=own * WIDTH < C)
        tl.store(rstd_BG + tl.program_id(2) * (C // WIDTH) + own, rstd, mask=own * WIDTH < C)
    place, channel, inside = _place(pixels, C, WIDTH, PIXELS, GROUPS, P2)
    known = channel < C
    weight = tl.load(weight_C + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_C + channel, mask=known, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    z = (values - mean[None, :, None]) * rstd[None, :, None] * weight + bias
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y + place, z.to(y.dtype.element_ty), mask=inside)


@kernel
def _gradient(
    dy: tl.tensor,
    x: tl.tensor,
    mean_BG: tl.tensor,
    rstd_BG: tl.tensor,
    weight_C: tl.tensor,
    bias_C: tl.tensor,
    place: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    SILU: tl.constexpr,
) -> tl.tensor:
    """(g, x̂, 1/σ) of a tile; g is zero where there is nothing."""
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[None, :, None]
    at = tl.program_id(2) * (C // WIDTH) + group
    rstd = tl.load(rstd_BG + at, mask=group * WIDTH < C, other=0.0)
    mean = tl.load(mean_BG + at, mask=group * WIDTH < C, other=0.0)
    known = channel < C
    weight = tl.load(weight_C + channel, mask=known, other=0.0).to(tl.float32)
    straight = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
    g = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32) * weight
    if SILU:
        z = straight * weight + tl.load(bias_C + channel, mask=known, other=0.0).to(tl.float32)
        s = 1.0 / (1.0 + tl.exp(-z))
        g = g * s * (1.0 + z * (1.0 - s))
    return g, straight, rstd


@kernel
def _sums(
    dy: tl.tensor,
    x: tl.tensor,
    mean_BG: tl.tensor,
    rstd_BG: tl.tensor,
    weight_C: tl.tensor,
    bias_C: tl.tensor,
    g_BKG: tl.tensor,
    gx_BKG: tl.tensor,
    pixels: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    P2: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    """Of each chunk: those of g and of g x̂."""
    place, channel, inside = _place(pixels, C, WIDTH, PIXELS, GROUPS, P2)
    g, straight, _ = _gradient(
        dy, x, mean_BG, rstd_BG, weight_C, bias_C, place, channel, inside, C, WIDTH, GROUPS, SILU
    )
    part, there = _chunk(C, WIDTH, GROUPS)
    tl.store(g_BKG + part, _total(g), mask=there)
    tl.store(gx_BKG + part, _total(g * straight), mask=there)


@kernel
def _backward(
    dy: tl.tensor,
    x: tl.tensor,
    plus: tl.tensor,
    dx: tl.tensor,
    mean_BG: tl.tensor,
    rstd_BG: tl.tensor,
    weight_C: tl.tensor,
    bias_C: tl.tensor,
    g_BKG: tl.tensor,
    gx_BKG: tl.tensor,
    pixels: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    P2: tl.constexpr,
    K2: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    _, part, there = _chunks(C, WIDTH, GROUPS, K2)
    mean_g = tl.sum(tl.load(g_BKG + part, mask=there, other=0.0), 0) / (pixels * WIDTH)
    mean_gx = tl.sum(tl.load(gx_BKG + part, mask=there, other=0.0), 0) / (pixels * WIDTH)
    place, channel, inside = _place(pixels, C, WIDTH, PIXELS, GROUPS, P2)
    g, straight, rstd = _gradient(
        dy, x, mean_BG, rstd_BG, weight_C, bias_C, place, channel, inside, C, WIDTH, GROUPS, SILU
    )
    result = (g - mean_g[None, :, None] - straight * mean_gx[None, :, None]) * rstd
    if plus is not None:
        result += tl.load(plus + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class _Plan:
    """How a batch is cut: `grid` of tiles, and what the kernels want to know of them."""

    grid: tuple[int, int, int]
    tile: dict[str, int]
    warps: int

    @property
    def all_chunks(self) -> int:
        return power_of_two(self.grid[0])


def _plan(x_BCHW: Tensor, groups: int) -> _Plan:
    batch, channels, height, width = x_BCHW.shape
    each, pixels = channels // groups, height * width
    p2 = power_of_two(each)
    together = min(power_of_two(groups), max(1, 64 // p2))  # so that a pixel's values in a tile fill its memory lines
    most = max(ELEMENTS // (p2 * together), power_of_two(blocks(pixels, CHUNKS)))
    rows = min(most, power_of_two(pixels))
    grid = blocks(pixels, rows), blocks(groups, together), batch
    tile = {"C": channels, "WIDTH": each, "PIXELS": rows, "GROUPS": together, "P2": p2}
    return _Plan(grid, tile, min(max(rows * together * p2 // 1024, 1), 16))


def group_norm_forward(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(result, μ, 1/σ) by kernels; `x_BCHW` and the result have channels last, the others are (B, G) in float32."""
    assert x_BCHW.is_contiguous(memory_format=torch.channels_last)
    plan, batch, pixels = _plan(x_BCHW, groups), len(x_BCHW), x_BCHW.shape[2] * x_BCHW.shape[3]
    parts_2BKG = x_BCHW.new_empty(2, batch, plan.grid[0], groups, dtype=torch.float32)
    stats_2BG = x_BCHW.new_empty(2, batch, groups, dtype=torch.float32)
    y_BCHW = torch.empty_like(x_BCHW)
    _moments[plan.grid](x_BCHW, *parts_2BKG, pixels, **plan.tile, num_warps=plan.warps)
    _normalise[plan.grid](
        x_BCHW,
        y_BCHW,
        *parts_2BKG,
        *stats_2BG,
        weight_C,
        bias_C,
        pixels,
        eps,
        **plan.tile,
        K2=plan.all_chunks,
        SILU=silu,
        num_warps=plan.warps,
    )
    return y_BCHW, stats_2BG[0], stats_2BG[1]


def group_norm_backward(
    dy_BCHW: Tensor,
    x_BCHW: Tensor,
    mean_BG: Tensor,
    rstd_BG: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    silu: bool,
    plus_BCHW: Tensor | None = None,
) -> Tensor:
    """The gradient of `x_BCHW`, and `plus_BCHW` added to it, by kernels. All have channels last."""
    for given in (dy_BCHW, x_BCHW, plus_BCHW):
        assert given is None or given.is_contiguous(memory_format=torch.channels_last)
    batch, groups = mean_BG.shape
    plan, pixels = _plan(x_BCHW, groups), x_BCHW.shape[2] * x_BCHW.shape[3]
    parts_2BKG = x_BCHW.new_empty(2, batch, plan.grid[0], groups, dtype=torch.float32)
    dx_BCHW = torch.empty_like(x_BCHW)
    known = mean_BG, rstd_BG, weight_C, bias_C, *parts_2BKG, pixels
    _sums[plan.grid](dy_BCHW, x_BCHW, *known, **plan.tile, SILU=silu, num_warps=plan.warps)
    _backward[plan.grid](
        dy_BCHW,
        x_BCHW,
        plus_BCHW,
        dx_BCHW,
        *known,
        **plan.tile,
        K2=plan.all_chunks,
        SILU=silu,
        num_warps=plan.warps,
    )
    return dx_BCHW


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        y_BCHW, mean_BG, rstd_BG = group_norm_forward(x_BCHW, weight_C, bias_C, groups, eps, silu)
        ctx.save_for_backward(x_BCHW, mean_BG, rstd_BG, weight_C, bias_C)
        ctx.silu = silu
        return y_BCHW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy_BCHW = grads[0].contiguous(memory_format=torch.channels_last)
        return group_norm_backward(dy_BCHW, *ctx.saved_tensors, silu=ctx.silu), None, None, None, None, None


def group_norm(x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """`group_norm_definition`; by kernels the result has channels last, and nothing is known of weights' gradients."""
    if not gate.opens(x_BCHW, "group_norm") or weight_C.requires_grad or bias_C.requires_grad:
        return group_norm_definition(x_BCHW, weight_C, bias_C, groups, eps, silu)
    result: Tensor = _GroupNorm.apply(x_BCHW, weight_C, bias_C, groups, eps, silu)  # type: ignore[no-untyped-call]
    return result
