"""The frozen convolutions of the U-Net, with channels last: only the gradient of the input is ever needed.

A 3×3 convolution is one matrix product here, of all 3×3 patches with the weights. At the small sizes of a small base
that is twice as fast as the library's (which multiplies the other way round, with 4 to 256 columns), and the gradient
of its input is the same operation with the kernel turned round.

Shape suffixes: B batch, C input channels, O output channels, H height, W width, R = B · H · W rows, K = 9 · C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def to_rows(x_BCHW: Tensor) -> Tensor:
    """(R, C); a view if channels are last in memory."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1])


def from_rows(x_RC: Tensor, like_BCHW: Tensor) -> Tensor:
    """The inverse of `to_rows`, as a view whose channels are last in memory."""
    batch, _, height, width = like_BCHW.shape
    return x_RC.view(batch, height, width, -1).permute(0, 3, 1, 2)


class Patches:
    """The 3×3 neighbourhoods of every pixel, zeros beyond the border, as rows (R, K) with channels last.

    Inputs are copied into buffers that have the border already; there is one for each shape, used again and again.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}

    def place(self, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(where to write an input of this shape, its neighbourhoods (B, H, W, 3, 3, C)): views of one buffer, which
        hold until the next call with the shape."""
        key = (like_BCHW.shape, like_BCHW.dtype)
        if key not in self._buffers:
            batch, channels, height, width = like_BCHW.shape
            border_BHWC = like_BCHW.new_zeros(batch, height + 2, width + 2, channels)
            windows = border_BHWC.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
            self._buffers[key] = (border_BHWC[:, 1:-1, 1:-1].permute(0, 3, 1, 2), windows)
        return self._buffers[key]

    def of(self, x_BCHW: Tensor, stride: int = 1) -> Tensor:
        """Those of `x_BCHW`, of every pixel or of every other one."""
        inside_BCHW, windows = self.place(x_BCHW)
        inside_BCHW.copy_(x_BCHW)
        return windows[:, ::stride, ::stride].reshape(-1, 9 * x_BCHW.shape[1])

    def of_silu(self, x_BCHW: Tensor) -> Tensor:
        """Those of `silu(x_BCHW)`."""
        inside_BCHW, windows = self.place(x_BCHW)
        torch.ops.aten.silu.out(x_BCHW, out=inside_BCHW)
        return windows.reshape(-1, 9 * x_BCHW.shape[1])


class Kernel:
    """The weights of a 3×3 convolution for `Patches`, both ways: (K, O) and its mirror (9 · O, C)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        weight_OC33 = convolution.weight.detach()
        assert convolution.bias is not None
        self.bias_O = convolution.bias.detach()
        self.forward_KO = weight_OC33.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        self.backward_KC = weight_OC33.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2).contiguous()


class FusedConvolution:
    """A 3×3 convolution with padding 1, and the gradient of its input."""

    def __init__(self, module: nn.Conv2d, patches: Patches) -> None:
        self.kernel, self.stride, self.patches = Kernel(module), module.stride[0], patches

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        batch, _, height, width = x_BCHW.shape
        y_RO = torch.addmm(self.kernel.bias_O, self.patches.of(x_BCHW, self.stride), self.kernel.forward_KO)
        y_BHWO = y_RO.view(batch, -(-height // self.stride), -(-width // self.stride), -1)
        return y_BHWO.permute(0, 3, 1, 2), (x_BCHW,)

    def backward(self, saved: tuple[Any, ...], dy_BOHW: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor]:
        (x_BCHW,) = saved
        if self.stride > 1:
            spread_BOHW = torch.zeros_like(x_BCHW[:, :1]).repeat(1, dy_BOHW.shape[1], 1, 1)
            spread_BOHW[:, :, :: self.stride, :: self.stride] = dy_BOHW
            dy_BOHW = spread_BOHW
        return (from_rows(self.patches.of(dy_BOHW) @ self.kernel.backward_KC, x_BCHW),)


class FusedUpsample:
    """Nearest-neighbour enlargement to twice the size, followed by a 3×3 convolution."""

    def __init__(self, module: nn.Conv2d, patches: Patches) -> None:
        self.kernel, self.patches = Kernel(module), patches

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        batch, channels, height, width = x_BCHW.shape
        x_BH1W1C = x_BCHW.permute(0, 2, 3, 1)[:, :, None, :, None]
        large_BHWC = x_BH1W1C.expand(-1, -1, 2, -1, 2, -1).reshape(batch, 2 * height, 2 * width, channels)
        large_BCHW = large_BHWC.permute(0, 3, 1, 2)
        y_RO = torch.addmm(self.kernel.bias_O, self.patches.of(large_BCHW), self.kernel.forward_KO)
        return from_rows(y_RO, large_BCHW), (x_BCHW,)

    def backward(self, saved: tuple[Any, ...], dy_BOHW: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor]:
        (x_BCHW,) = saved
        batch, channels, height, width = x_BCHW.shape
        d_RC = self.patches.of(dy_BOHW) @ self.kernel.backward_KC
        return (d_RC.view(batch, height, 2, width, 2, channels).sum((2, 4)).permute(0, 3, 1, 2),)
