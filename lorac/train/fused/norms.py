"""GroupNorm and LayerNorm with frozen weights: forward with the statistics, and the gradient of the input alone.

By Triton's kernels where `lorac.kernels.gate` lets them run, else by torch's.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from lorac.kernels import gate
from lorac.kernels.group_norm import group_norm_backward as backward_kernel
from lorac.kernels.group_norm import group_norm_forward as forward_kernel
from lorac.kernels.layer_norm import layer_norm_backward as rows_backward_kernel
from lorac.kernels.layer_norm import layer_norm_forward as rows_forward_kernel

Stats: TypeAlias = tuple[Tensor, Tensor]
"""Mean and reciprocal of the standard deviation, for each group or row."""

_INPUT_ONLY = [True, False, False]


def _in_order(x_BCHW: Tensor) -> Tensor:
    """In the memory order that the kernels take for granted: channels last on a CPU, else first."""
    cpu = x_BCHW.device.type == "cpu"
    return x_BCHW.contiguous(memory_format=torch.channels_last if cpu else torch.contiguous_format)


def group_norm(norm: nn.GroupNorm, x_BCHW: Tensor) -> tuple[Tensor, Stats]:
    if gate.opens(x_BCHW, "group_norm"):
        return _by_kernels(norm, x_BCHW, silu=False)
    batch, channels, height, width = x_BCHW.shape
    y_BCHW, mean, rstd = torch.ops.aten.native_group_norm(
        _in_order(x_BCHW), norm.weight, norm.bias, batch, channels, height * width, norm.num_groups, norm.eps
    )
    return y_BCHW, (mean, rstd)


def group_norm_silu(norm: nn.GroupNorm, x_BCHW: Tensor) -> tuple[Tensor, Stats, bool]:
    """(result, statistics, whether SiLU is yet to be done): a kernel does it, else who reads the result has to."""
    if gate.opens(x_BCHW, "group_norm"):
        return *_by_kernels(norm, x_BCHW, silu=True), False
    return *group_norm(norm, x_BCHW), True


def _by_kernels(norm: nn.GroupNorm, x_BCHW: Tensor, silu: bool) -> tuple[Tensor, Stats]:
    x_BCHW = _channels_last(x_BCHW)
    y_BCHW, mean, rstd = forward_kernel(x_BCHW, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return y_BCHW, (mean, rstd)


def _channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def group_norm_backward(
    norm: nn.GroupNorm, dy_BCHW: Tensor, x_BCHW: Tensor, stats: Stats, plus_BCHW: Tensor | None = None
) -> Tensor:
    """The gradient of `x_BCHW`, and `plus_BCHW` added to it."""
    if gate.opens(x_BCHW, "group_norm"):
        return _backward_by_kernels(norm, dy_BCHW, x_BCHW, stats, False, plus_BCHW)
    batch, channels, height, width = x_BCHW.shape
    dx_BCHW: Tensor = torch.ops.aten.native_group_norm_backward(
        _in_order(dy_BCHW),
        _in_order(x_BCHW),
        *stats,
        norm.weight,
        batch,
        channels,
        height * width,
        norm.num_groups,
        _INPUT_ONLY,
    )[0]
    return dx_BCHW if plus_BCHW is None else dx_BCHW.add_(plus_BCHW)


def group_norm_silu_backward(
    norm: nn.GroupNorm,
    dy_BCHW: Tensor,
    normed_BCHW: Tensor | None,
    x_BCHW: Tensor,
    stats: Stats,
    plus_BCHW: Tensor | None = None,
) -> Tensor:
    """The gradient of `x_BCHW` from that of `silu(norm(x_BCHW))`, which may be overwritten, plus `plus_BCHW`.

    `normed_BCHW` is computed where it is wanted and was not kept; kernels do not want it.
    """
    if gate.opens(x_BCHW, "group_norm"):
        return _backward_by_kernels(norm, dy_BCHW, x_BCHW, stats, True, plus_BCHW)
    if normed_BCHW is None:
        normed_BCHW, _ = group_norm(norm, x_BCHW)
    torch.ops.aten.silu_backward.grad_input(dy_BCHW, normed_BCHW, grad_input=dy_BCHW)
    del normed_BCHW
    return group_norm_backward(norm, dy_BCHW, x_BCHW, stats, plus_BCHW)


def _backward_by_kernels(
    norm: nn.GroupNorm, dy_BCHW: Tensor, x_BCHW: Tensor, stats: Stats, silu: bool, plus_BCHW: Tensor | None
) -> Tensor:
    plus_BCHW = None if plus_BCHW is None else _channels_last(plus_BCHW)
    dx_BCHW: Tensor = backward_kernel(
        _channels_last(dy_BCHW), _channels_last(x_BCHW), *stats, norm.weight, norm.bias, silu, plus_BCHW
    )
    return dx_BCHW


def layer_norm(norm: nn.LayerNorm, x_RC: Tensor) -> tuple[Tensor, Stats]:
    if gate.opens(x_RC, "layer_norm"):
        y_RC, mean, rstd = rows_forward_kernel(x_RC.contiguous(), norm.weight, norm.bias, norm.eps)
        return y_RC, (mean, rstd)
    y_RC, mean, rstd = torch.ops.aten.native_layer_norm(x_RC, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return y_RC, (mean, rstd)


def layer_norm_backward(norm: nn.LayerNorm, dy_RC: Tensor, x_RC: Tensor, stats: Stats, plus_RC: Tensor) -> Tensor:
    """The gradient of `x_RC`, and `plus_RC` added to it."""
    dx_RC: Tensor
    if gate.opens(x_RC, "layer_norm"):
        dx_RC = rows_backward_kernel(dy_RC.contiguous(), x_RC.contiguous(), *stats, norm.weight, plus_RC.contiguous())
        return dx_RC
    dx_RC = torch.ops.aten.native_layer_norm_backward(
        dy_RC, x_RC, norm.normalized_shape, *stats, norm.weight, norm.bias, _INPUT_ONLY
    )[0]
    return dx_RC.add_(plus_RC)
