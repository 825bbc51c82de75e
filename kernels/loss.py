"""The loss of each sample, and the gradient of the U-Net's estimate.

    L_b = w_b / n · Σ mask · f(e − target),   dL_b/de = w_b / n · mask · f'(e − target),   n = C · H · W

    l2         f(d) = d²                       f'(d) = 2 d
    l1         f(d) = |d|                      f'(d) = sign d
    huber      f(d) = 2 c (√(d² + c²) − c)     f'(d) = 2 c d / √(d² + c²)
    smooth_l1  f(d) = 2 (√(d² + c²) − c)       f'(d) = 2 d / √(d² + c²)

with kohya-ss/sd-scripts' names (`conditional_loss`). w_b holds all weights: that of the sample, and those by its SNR
(min-SNR: Hang et al. 2023, arXiv:2303.09556). `times` is what the loss is multiplied by before it goes back: the loss
scale and the sample's share. It goes in before the gradient is rounded: of 16384 errors each counts 1e-4, which is
where float16 ends. A first launch sums blocks, a second the blocks of a sample, in the same order every time.

What is not here: adding noise. Noise is drawn on the CPU, so that a seed means the same picture on every device, and
there the noisy latents are made too: a card would be sent latents and noise instead of noisy latents and target, which
is no less, for one launch more.

Shape suffixes: B batch, C channels, H height, W width, P parts of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lorac.kernels import gate
from lorac.kernels.gate import blocks, kernel
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 1024
"""Numbers of a program: an estimate of 4 · 64 · 64 makes sixteen."""


def loss_definition(
    estimate_BCHW: Tensor,
    target_BCHW: Tensor,
    weight_B: Tensor,
    mask_B1HW: Tensor | None = None,
    threshold_B: Tensor | None = None,
    measure: str = "l2",
) -> Tensor:
    """What the operation means, in plain PyTorch: the loss of each sample, (B,). `threshold_B` is the c of the two
    measures that have one."""
    d_BCHW = estimate_BCHW - target_BCHW
    if measure == "l2":
        error_BCHW = d_BCHW.square()
    elif measure == "l1":
        error_BCHW = d_BCHW.abs()
    else:
        assert threshold_B is not None
        c_B111 = threshold_B[:, None, None, None]
        root_BCHW = (d_BCHW.square() + c_B111.square()).sqrt() - c_B111
        error_BCHW = 2 * (c_B111 * root_BCHW if measure == "huber" else root_BCHW)
    if mask_B1HW is not None:
        error_BCHW = error_BCHW * mask_B1HW
    return error_BCHW.mean((1, 2, 3)) * weight_B


@kernel
def _parts(
    e_BCHW: tl.tensor,
    target_BCHW: tl.tensor,
    weight_B: tl.tensor,
    times_B: tl.tensor,
    mask_B1HW: tl.tensor,
    threshold_B: tl.tensor,
    sum_BP: tl.tensor,
    de_BCHW: tl.tensor,
    size: tl.tensor,
    pixels: tl.tensor,
    e_b: tl.tensor,
    e_c: tl.tensor,
    e_p: tl.tensor,
    MEASURE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The sums of blocks or the gradient: the one that is not None."""
    b = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    pixel = at % pixels
    place = b * e_b + at // pixels * e_c + pixel * e_p
    d = tl.load(e_BCHW + place, mask=inside, other=0.0).to(tl.float32)
    d -= tl.load(target_BCHW + b * size + at, mask=inside, other=0.0).to(tl.float32)
    if MEASURE == "l2":
        error = d * d
        slope = 2.0 * d
    elif MEASURE == "l1":
        error = tl.abs(d)
        slope = tl.where(d > 0.0, 1.0, 0.0) - tl.where(d < 0.0, 1.0, 0.0)
    else:
        c = tl.load(threshold_B + b).to(tl.float32)
        root = tl.sqrt(d * d + c * c)
        error = 2.0 * (root - c)
        slope = 2.0 * d / root
        if MEASURE == "huber":
            error = error * c
            slope = slope * c
    if mask_B1HW is not None:
        mask = tl.load(mask_B1HW + b * pixels + pixel, mask=inside, other=0.0).to(tl.float32)
        error = error * mask
        slope = slope * mask
    if sum_BP is not None:
        whole = tl.sum(tl.where(inside, error, 0.0), axis=0)
        tl.store(sum_BP + b * tl.num_programs(1) + tl.program_id(1), whole)
    if de_BCHW is not None:
        factor = tl.load(weight_B + b) * tl.load(times_B + b) / size
        tl.store(de_BCHW + place, (slope * factor).to(de_BCHW.dtype.element_ty), mask=inside)


@kernel
def _whole(
    sum_BP: tl.tensor, weight_B: tl.tensor, loss_B: tl.tensor, size: tl.tensor, parts: tl.tensor, PARTS: tl.constexpr
) -> None:
    b = tl.program_id(0)
    at = tl.arange(0, PARTS)
    sums = tl.load(sum_BP + b * parts + at, mask=at < parts, other=0.0)
    tl.store(loss_B + b, tl.sum(sums, axis=0) / size * tl.load(weight_B + b))


def _launch(
    e_BCHW: Tensor,
    target_BCHW: Tensor,
    weight_B: Tensor,
    mask_B1HW: Tensor | None,
    threshold_B: Tensor | None,
    measure: str,
    *,
    times_B: Tensor | None = None,
    sum_BP: Tensor | None = None,
    de_BCHW: Tensor | None = None,
) -> None:
    size, pixels = e_BCHW[0].numel(), e_BCHW[0, 0].numel()
    e_b, e_c, e_row, e_p = e_BCHW.stride()
    assert e_row == e_BCHW.shape[3] * e_p
    assert target_BCHW.is_contiguous()
    assert mask_B1HW is None or mask_B1HW.is_contiguous()
    _parts[len(e_BCHW), blocks(size, BLOCK)](
        e_BCHW,
        target_BCHW,
        weight_B,
        times_B,
        mask_B1HW,
        threshold_B,
        sum_BP,
        de_BCHW,
        size,
        pixels,
        e_b,
        e_c,
        e_p,
        measure,
        BLOCK,
    )


def _sums(e_BCHW: Tensor) -> Tensor:
    return e_BCHW.new_empty(len(e_BCHW), blocks(e_BCHW[0].numel(), BLOCK), dtype=torch.float32)


def _total(sum_BP: Tensor, e_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    batch, parts = sum_BP.shape
    loss_B = sum_BP.new_empty(batch)
    _whole[(batch,)](sum_BP, weight_B, loss_B, e_BCHW[0].numel(), parts, gate.power_of_two(parts))
    return loss_B


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, estimate_BCHW: Tensor, measure: str, *constants: Tensor | None) -> Tensor:
        target_BCHW, weight_B, mask_B1HW, threshold_B = constants
        assert target_BCHW is not None
        assert weight_B is not None
        ctx.save_for_backward(estimate_BCHW, *constants)
        ctx.measure = measure
        sum_BP = _sums(estimate_BCHW)
        _launch(estimate_BCHW, target_BCHW, weight_B, mask_B1HW, threshold_B, measure, sum_BP=sum_BP)
        return _total(sum_BP, estimate_BCHW, weight_B)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        estimate_BCHW, *constants = ctx.saved_tensors
        gradient_BCHW = torch.empty_like(estimate_BCHW)
        _launch(estimate_BCHW, *constants, ctx.measure, times_B=grads[0].contiguous(), de_BCHW=gradient_BCHW)
        return gradient_BCHW, *[None] * (1 + len(constants))


def loss(
    estimate_BCHW: Tensor,
    target_BCHW: Tensor,
    weight_B: Tensor,
    mask_B1HW: Tensor | None = None,
    threshold_B: Tensor | None = None,
    measure: str = "l2",
) -> Tensor:
    """`loss_definition`, for autograd, by kernels where they run; there the gradient comes in a pass of its own, since
    what the loss is multiplied by is not known before. Only the estimate gets one."""
    constants = (target_BCHW, weight_B, mask_B1HW, threshold_B)
    if not gate.opens(estimate_BCHW, "loss"):
        return loss_definition(estimate_BCHW, *constants, measure)
    result: Tensor = _Loss.apply(estimate_BCHW, measure, *constants)  # type: ignore[no-untyped-call]
    return result
