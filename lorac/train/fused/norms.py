"""GroupNorm and LayerNorm with frozen weights: forward with the statistics, and the gradient of the input alone."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

Stats: TypeAlias = tuple[Tensor, Tensor]
"""Mean and reciprocal of the standard deviation, for each group or row."""

_INPUT_ONLY = [True, False, False]


def _in_order(x_BCHW: Tensor) -> Tensor:
    """In the memory order that the kernels take for granted: channels last on a CPU, else first."""
    cpu = x_BCHW.device.type == "cpu"
    return x_BCHW.contiguous(memory_format=torch.channels_last if cpu else torch.contiguous_format)


def group_norm(norm: nn.GroupNorm, x_BCHW: Tensor) -> tuple[Tensor, Stats]:
    batch, channels, height, width = x_BCHW.shape
    y_BCHW, mean, rstd = torch.ops.aten.native_group_norm(
        _in_order(x_BCHW), norm.weight, norm.bias, batch, channels, height * width, norm.num_groups, norm.eps
    )
    return y_BCHW, (mean, rstd)


def group_norm_backward(norm: nn.GroupNorm, dy_BCHW: Tensor, x_BCHW: Tensor, stats: Stats) -> Tensor:
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
    return dx_BCHW


def layer_norm(norm: nn.LayerNorm, x_RC: Tensor) -> tuple[Tensor, Stats]:
    y_RC, mean, rstd = torch.ops.aten.native_layer_norm(x_RC, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return y_RC, (mean, rstd)


def layer_norm_backward(norm: nn.LayerNorm, dy_RC: Tensor, x_RC: Tensor, stats: Stats) -> Tensor:
    dx_RC: Tensor = torch.ops.aten.native_layer_norm_backward(
        dy_RC, x_RC, norm.normalized_shape, *stats, norm.weight, norm.bias, _INPUT_ONLY
    )[0]
    return dx_RC
