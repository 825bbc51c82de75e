"""A residual block of the U-Net, frozen: only the gradient of its input is ever needed.

Shape suffixes: B batch, C input channels, O output channels, H height, W width, R = B · H · W rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorac.sd.blocks import Resnet
from lorac.train.fused.convolution import Kernel, Patches, from_rows, to_rows
from lorac.train.fused.norms import group_norm, group_norm_backward


class FusedResnet:
    """`lorac.sd.blocks.Resnet` with a time input, and the gradient of its input."""

    def __init__(self, module: Resnet, patches: Patches) -> None:
        self.patches = patches
        self.norm1, self.norm2 = module.norm1, module.norm2
        self.conv1, self.conv2 = Kernel(module.conv1), Kernel(module.conv2)
        self.bias_O = self.conv2.bias_O
        self.shortcut_OC: Tensor | None = None
        if module.conv_shortcut is not None:
            assert module.conv_shortcut.bias is not None
            self.shortcut_OC = module.conv_shortcut.weight.detach().flatten(1)
            self.bias_O = self.bias_O + module.conv_shortcut.bias.detach()

    def forward(self, x_BCHW: Tensor, t_BO11: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output with channels last, what backward needs)."""
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        n1_BCHW, stats1 = group_norm(self.norm1, x_BCHW)
        h_RO = torch.mm(self.patches.of_silu(n1_BCHW), self.conv1.forward_KO)
        h_BOHW = from_rows(h_RO, x_BCHW).add_(t_BO11 + self.conv1.bias_O[:, None, None])
        n2_BOHW, stats2 = group_norm(self.norm2, h_BOHW)
        x_RC = to_rows(x_BCHW)
        if self.shortcut_OC is None:
            y_RO = torch.addmm(self.bias_O, self.patches.of_silu(n2_BOHW), self.conv2.forward_KO).add_(x_RC)
        else:
            straight_RO = torch.addmm(self.bias_O, x_RC, self.shortcut_OC.t())
            y_RO = straight_RO.addmm_(self.patches.of_silu(n2_BOHW), self.conv2.forward_KO)
        return from_rows(y_RO, x_BCHW), (x_BCHW, n1_BCHW, stats1, h_BOHW, n2_BOHW, stats2)

    def backward(self, saved: tuple[Any, ...], dy_BOHW: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor, None]:
        """The gradient of `x_BCHW`; the time input has none."""
        x_BCHW, n1_BCHW, stats1, h_BOHW, n2_BOHW, stats2 = saved
        dy_BOHW = dy_BOHW.contiguous(memory_format=torch.channels_last)
        d_BOHW = from_rows(self.patches.of(dy_BOHW) @ self.conv2.backward_KC, x_BCHW)
        d_BOHW = torch.ops.aten.silu_backward(d_BOHW, n2_BOHW)
        d_BOHW = group_norm_backward(self.norm2, d_BOHW, h_BOHW, stats2)
        d_BCHW = from_rows(self.patches.of(d_BOHW) @ self.conv1.backward_KC, x_BCHW)
        d_BCHW = torch.ops.aten.silu_backward(d_BCHW, n1_BCHW)
        dx_BCHW = group_norm_backward(self.norm1, d_BCHW, x_BCHW, stats1)
        if self.shortcut_OC is None:
            return dx_BCHW.add_(dy_BOHW), None
        return from_rows(torch.addmm(to_rows(dx_BCHW), to_rows(dy_BOHW), self.shortcut_OC), x_BCHW), None
