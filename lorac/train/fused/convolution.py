"""The frozen convolutions of the U-Net, with channels last: only the gradient of the input is ever needed.

How a 3×3 convolution is computed depends on its shape (`choice.py`): by minimal filtering (`winograd.py`), as a product
of every other pixel's patch (`strided.py`), by the library, or, at the small sizes of a small base, as one matrix
product of all 3×3 patches with the weights. There that is up to twice as fast as the library's (which multiplies the
other way round, with 4 to 256 columns), and the gradient of its input is the same operation with the kernel turned
round.

No convolution keeps anything for backward.

Shape suffixes: B batch, C input channels, O output channels, H height, W width, R = B · H · W rows, K = 9 · C.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.train.fused import strided, winograd
from lorac.train.fused.choice import GEOMETRIES, Algorithm, Shape, choose
from lorac.train.fused.scratch import Scratch
from lorac.train.switches import Switches

_INPUT_ONLY = [True, False, False]


def to_rows(x_BCHW: Tensor) -> Tensor:
    """(R, C); a view if channels are last in memory."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1])


def from_rows(x_RC: Tensor, like_BCHW: Tensor) -> Tensor:
    """The inverse of `to_rows`, as a view whose channels are last in memory."""
    batch, _, height, width = like_BCHW.shape
    return x_RC.view(batch, height, width, -1).permute(0, 3, 1, 2)


def enlarge(x_BCHW: Tensor) -> Tensor:
    """Each pixel four times, with channels last."""
    batch, channels, height, width = x_BCHW.shape
    x_BH1W1C = x_BCHW.permute(0, 2, 3, 1)[:, :, None, :, None]
    large_BHWC = x_BH1W1C.expand(-1, -1, 2, -1, 2, -1).reshape(batch, 2 * height, 2 * width, channels)
    return large_BHWC.permute(0, 3, 1, 2)


def shrink(x_BCHW: Tensor) -> Tensor:
    """The gradient of `enlarge`: sums of four pixels."""
    batch, channels, height, width = x_BCHW.shape
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    return x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels).sum((2, 4)).permute(0, 3, 1, 2)


def to_taps(weight_OC33: Tensor) -> Tensor:
    """(O, K): a view if channels are last in memory."""
    return weight_OC33.permute(0, 2, 3, 1).flatten(1)


class Kernel:
    """A frozen 3×3 convolution with padding 1, both ways. `enlarged`: of a picture of twice the input's size.

    Weights are laid out for an algorithm when a shape first wants it. `bias_O` may be replaced, on a card by None.
    """

    def __init__(self, module: nn.Conv2d, scratch: Scratch, switches: Switches, enlarged: bool = False) -> None:
        assert module.bias is not None
        self.bias_O: Tensor | None = module.bias.detach()
        self.stride, self._enlarged = module.stride[0], enlarged
        self._module, self._scratch, self._minimal = module, scratch, switches.winograd
        self._weights: dict[Algorithm, tuple[Tensor, ...]] = {}
        self._chosen: dict[torch.Size, Algorithm] = {}

    def forward(self, x_BCHW: Tensor, plus: Tensor | None = None, silu: bool = False) -> Tensor:
        """The convolution of `x_BCHW`, or of `silu(x_BCHW)`, and `plus`, which broadcasts to it. Channels last."""
        algorithm = self._choose(x_BCHW.shape, x_BCHW.device)
        if algorithm in GEOMETRIES:
            (weight_SSCO,) = self._laid_out(algorithm)
            return winograd.convolve(x_BCHW, weight_SSCO, algorithm, self._scratch, self.bias_O, plus, silu)
        if algorithm is Algorithm.PATCHES:
            y_BOHW = self._forward_patches(enlarge(x_BCHW) if self._enlarged else x_BCHW, silu)
        else:
            bias_O = self.bias_O
            if plus is not None and bias_O is not None and not x_BCHW.is_cpu and plus.shape[2:] == (1, 1):
                plus, bias_O = plus + bias_O[:, None, None], None  # a card adds either to the whole result
            y_BOHW = self._forward_plain(F.silu(x_BCHW) if silu else x_BCHW, algorithm, bias_O)
        return y_BOHW if plus is None else y_BOHW.add_(plus)

    def backward(self, dy_BOHW: Tensor, shape_BCHW: torch.Size) -> Tensor:
        """The gradient of the input, which had this shape, with channels last."""
        algorithm = self._choose(shape_BCHW, dy_BOHW.device)
        if algorithm in GEOMETRIES:
            (weight_SSCO,) = self._laid_out(algorithm)
            return winograd.gradient(dy_BOHW, weight_SSCO, algorithm, self._scratch)
        if algorithm is Algorithm.PATCHES:
            dy_BOHW = self._spread(dy_BOHW, shape_BCHW) if self.stride > 1 else dy_BOHW
            dx_BCHW = from_rows(self._patches(dy_BOHW) @ self._laid_out(algorithm)[1], dy_BOHW)
        else:
            dx_BCHW = self._backward_plain(dy_BOHW, shape_BCHW, algorithm)
        return shrink(dx_BCHW) if self._enlarged else dx_BCHW

    def _choose(self, shape_BCHW: torch.Size, device: torch.device) -> Algorithm:
        if shape_BCHW not in self._chosen:
            batch, channels, height, width = shape_BCHW
            shape = Shape(batch, channels, self._module.out_channels, height, width, self.stride, self._enlarged)
            self._chosen[shape_BCHW] = choose(shape, self._minimal, device.type == "cpu")
        return self._chosen[shape_BCHW]

    def _laid_out(self, algorithm: Algorithm) -> tuple[Tensor, ...]:
        if algorithm not in self._weights:
            weight_OC33 = self._module.weight.detach()
            if algorithm in GEOMETRIES:
                self._weights[algorithm] = (winograd.components(weight_OC33, algorithm),)
            elif algorithm is Algorithm.PATCHES:
                forward_KO = weight_OC33.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
                backward_KC = weight_OC33.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2).contiguous()
                self._weights[algorithm] = forward_KO, backward_KC
            else:
                # In place of the module's own: the values are the same, and there is no second copy.
                self._module.weight.data = weight_OC33.contiguous(memory_format=torch.channels_last)
                self._weights[algorithm] = (self._module.weight.detach(),)
        return self._weights[algorithm]

    def _forward_patches(self, x_BCHW: Tensor, silu: bool) -> Tensor:
        batch, _, height, width = x_BCHW.shape
        patches_RK = self._patches(x_BCHW, silu, self.stride)
        assert self.bias_O is not None
        y_RO = torch.addmm(self.bias_O, patches_RK, self._laid_out(Algorithm.PATCHES)[0])
        y_BHWO = y_RO.view(batch, -(-height // self.stride), -(-width // self.stride), -1)
        return y_BHWO.permute(0, 3, 1, 2)

    def _patches(self, x_BCHW: Tensor, silu: bool = False, stride: int = 1) -> Tensor:
        """(R, K): the neighbourhoods of every pixel, or of every other one, zeros beyond the border."""
        inside_BCHW, windows_BHW33C = self._scratch.neighbourhoods(x_BCHW)
        if silu:
            torch.ops.aten.silu.out(x_BCHW, out=inside_BCHW)
        else:
            inside_BCHW.copy_(x_BCHW)
        return windows_BHW33C[:, ::stride, ::stride].reshape(-1, 9 * x_BCHW.shape[1])

    def _spread(self, dy_BOHW: Tensor, shape_BCHW: torch.Size) -> Tensor:
        """With zeros in the places of the pixels that were left out."""
        batch, _, height, width = shape_BCHW
        spread_BOHW = dy_BOHW.new_zeros(batch, height, width, dy_BOHW.shape[1]).permute(0, 3, 1, 2)
        spread_BOHW[:, :, :: self.stride, :: self.stride] = dy_BOHW
        return spread_BOHW

    def _forward_plain(self, x_BCHW: Tensor, algorithm: Algorithm, bias_O: Tensor | None) -> Tensor:
        """With the weights in the module's order."""
        (weight_OC33,) = self._laid_out(algorithm)
        if algorithm is Algorithm.STRIDED:
            assert bias_O is not None
            return strided.convolve(x_BCHW, to_taps(weight_OC33), bias_O, self._scratch)
        x_BCHW = (enlarge(x_BCHW) if self._enlarged else x_BCHW).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x_BCHW, weight_OC33, bias_O, self.stride, padding=1)

    def _backward_plain(self, dy_BOHW: Tensor, shape_BCHW: torch.Size, algorithm: Algorithm) -> Tensor:
        (weight_OC33,) = self._laid_out(algorithm)
        if algorithm is Algorithm.STRIDED:
            return strided.gradient(dy_BOHW, shape_BCHW, to_taps(weight_OC33), self._scratch)
        batch, channels, height, width = shape_BCHW
        times, stride = 2 if self._enlarged else 1, [self.stride, self.stride]
        x_BCHW = dy_BOHW.new_empty(1).expand(batch, channels, times * height, times * width)  # only its shape counts
        dy_BOHW = dy_BOHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW: Tensor = torch.ops.aten.convolution_backward(
            dy_BOHW, x_BCHW, weight_OC33, None, stride, [1, 1], [1, 1], False, [0, 0], 1, _INPUT_ONLY
        )[0]
        return dx_BCHW


class FusedConvolution:
    """A 3×3 convolution with padding 1, and the gradient of its input."""

    def __init__(self, module: nn.Conv2d, scratch: Scratch, switches: Switches, enlarged: bool = False) -> None:
        self.kernel = Kernel(module, scratch, switches, enlarged)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        return self.kernel.forward(x_BCHW), (x_BCHW.shape,)

    def backward(self, saved: tuple[Any, ...], dy_BOHW: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None]:
        (shape_BCHW,) = saved
        return (self.kernel.backward(dy_BOHW, shape_BCHW) if needs[0] else None,)


class FusedUpsample(FusedConvolution):
    """Nearest-neighbour enlargement to twice the size, followed by a 3×3 convolution."""

    def __init__(self, module: nn.Conv2d, scratch: Scratch, switches: Switches) -> None:
        super().__init__(module, scratch, switches, enlarged=True)
