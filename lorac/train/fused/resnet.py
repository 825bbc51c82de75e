"""A residual block of the U-Net, frozen: only the gradient of its input is ever needed.

Shape suffixes: B batch, C input channels, O output channels, H height, W width, R = B · H · W rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorac.sd.blocks import Resnet
from lorac.train.fused.convolution import Kernel, from_rows, to_rows
from lorac.train.fused.norms import group_norm_silu, group_norm_silu_backward
from lorac.train.fused.scratch import Scratch
from lorac.train.switches import Recompute, Switches


class FusedResnet:
    """`lorac.sd.blocks.Resnet` with a time input, and the gradient of its other input.

    Kept for backward: the input; what the first convolution gave, unless whole blocks are computed again; what the
    norms gave, unless they are.
    """

    def __init__(
        self,
        module: Resnet,
        scratch: Scratch,
        switches: Switches,
        recompute: Recompute = Recompute.NOTHING,
    ) -> None:
        self.norm1, self.norm2, self.recompute = module.norm1, module.norm2, recompute
        self.conv1, self.conv2 = Kernel(module.conv1, scratch, switches), Kernel(module.conv2, scratch, switches)
        self.shortcut_OC: Tensor | None = None
        self.shortcut_bias_O: Tensor | None = None
        if module.conv_shortcut is not None:
            assert module.conv_shortcut.bias is not None
            assert self.conv2.bias_O is not None
            self.shortcut_OC = module.conv_shortcut.weight.detach().flatten(1)
            bias_O = self.conv2.bias_O + module.conv_shortcut.bias.detach()
            if bias_O.is_cpu:
                self.conv2.bias_O = bias_O
            else:  # there a product adds it as it is stored, a convolution afterwards
                self.conv2.bias_O, self.shortcut_bias_O = None, bias_O

    def forward(self, x_BCHW: Tensor, t_BO11: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output with channels last, what backward needs)."""
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        n1_BCHW, stats1, silu = group_norm_silu(self.norm1, x_BCHW)
        h_BOHW = self.conv1.forward(n1_BCHW, t_BO11, silu=silu)
        if self.recompute:
            del n1_BCHW
        n2_BOHW, stats2, silu = group_norm_silu(self.norm2, h_BOHW)
        y_BOHW = self.conv2.forward(n2_BOHW, self._straight(x_BCHW), silu=silu)
        if self.recompute >= Recompute.BLOCK:
            return y_BOHW, (x_BCHW, t_BO11)
        if self.recompute >= Recompute.ELEMENTWISE:
            return y_BOHW, (x_BCHW, stats1, h_BOHW, stats2)
        if not silu:  # a kernel's backward reads the norms' inputs alone
            return y_BOHW, (x_BCHW, stats1, h_BOHW, stats2, None, None)
        return y_BOHW, (x_BCHW, stats1, h_BOHW, stats2, n1_BCHW, n2_BOHW)

    def _straight(self, x_BCHW: Tensor) -> Tensor:
        """What goes past the convolutions, with channels last."""
        if self.shortcut_OC is None:
            return x_BCHW
        if self.shortcut_bias_O is None:
            return from_rows(torch.mm(to_rows(x_BCHW), self.shortcut_OC.t()), x_BCHW)
        return from_rows(torch.addmm(self.shortcut_bias_O, to_rows(x_BCHW), self.shortcut_OC.t()), x_BCHW)

    def backward(self, saved: tuple[Any, ...], dy_BOHW: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, None]:
        """The gradient of `x_BCHW`; the time input has none."""
        if not needs[0]:
            return None, None
        x_BCHW, stats1, h_BOHW, stats2, n1_BCHW, n2_BOHW = self._complete(saved)
        d_BOHW = self.conv2.backward(dy_BOHW, h_BOHW.shape)
        d_BOHW = group_norm_silu_backward(self.norm2, d_BOHW, n2_BOHW, h_BOHW, stats2)
        del h_BOHW, n2_BOHW
        d_BCHW = self.conv1.backward(d_BOHW, x_BCHW.shape)
        del d_BOHW
        straight_BCHW = dy_BOHW if self.shortcut_OC is None else None
        dx_BCHW = group_norm_silu_backward(self.norm1, d_BCHW, n1_BCHW, x_BCHW, stats1, straight_BCHW)
        if self.shortcut_OC is None:
            return dx_BCHW, None
        return from_rows(to_rows(dx_BCHW).addmm_(to_rows(dy_BOHW), self.shortcut_OC), x_BCHW), None

    def _complete(self, saved: tuple[Any, ...]) -> tuple[Any, ...]:
        """`saved` as `Recompute.NOTHING` has it, but for what `group_norm_silu_backward` makes for itself."""
        if self.recompute >= Recompute.BLOCK:
            x_BCHW, t_BO11 = saved
            n1_BCHW, stats1, silu = group_norm_silu(self.norm1, x_BCHW)
            h_BOHW = self.conv1.forward(n1_BCHW, t_BO11, silu=silu)
            del n1_BCHW
            n2_BOHW, stats2, _ = group_norm_silu(self.norm2, h_BOHW)
            return x_BCHW, stats1, h_BOHW, stats2, None, n2_BOHW
        return saved if self.recompute == Recompute.NOTHING else (*saved, None, None)
