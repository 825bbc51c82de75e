"""3×3 convolutions with stride 2 and padding 1 as one product of patches with the weights as they are.

The library lays the weights out anew in every call, which for wide layers takes longer than the product.

Shape suffixes: B batch, C input channels, O output channels, H height, W width, Y and X those of the output,
R = B · Y · X rows, K = 9 · C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorac.train.fused.choice import halved, strided_sizes, together
from lorac.train.fused.scratch import Scratch


def convolve(x_BCHW: Tensor, weight_OK: Tensor, bias_O: Tensor, scratch: Scratch) -> Tensor:
    """With channels last."""
    batch, channels, height, width = x_BCHW.shape
    down, across = halved(height, width)
    y_BYXO = x_BCHW.new_empty(batch, down, across, len(weight_OK))
    pictures = together(batch, down, across)
    for first in range(0, batch, pictures):
        some_BCHW = x_BCHW[first : first + pictures]
        count = len(some_BCHW)
        border_BHWC = scratch.bordered(x_BCHW, (count, height + 2, width + 2, channels), (height, width))
        border_BHWC[:, 1:-1, 1:-1].permute(0, 3, 1, 2).copy_(some_BCHW)
        (patches,) = scratch.buffers(x_BCHW, [strided_sizes(count, height, width, channels)[1]])
        patches_BYX33C = patches.view(count, down, across, 3, 3, channels)
        patches_BYX33C.copy_(border_BHWC.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3))
        y_RO = y_BYXO[first : first + pictures].view(-1, len(weight_OK))
        torch.addmm(bias_O, patches.view(len(y_RO), -1), weight_OK.t(), out=y_RO)
    return y_BYXO.permute(0, 3, 1, 2)


def gradient(dy_BOYX: Tensor, shape_BCHW: torch.Size, weight_OK: Tensor, scratch: Scratch) -> Tensor:
    """That of the input, which had this shape, with channels last."""
    batch, channels, height, width = shape_BCHW
    _, outputs, down, across = dy_BOYX.shape
    dy_BYXO = dy_BOYX.permute(0, 2, 3, 1)
    dx_BHWC = dy_BOYX.new_empty(batch, height, width, channels)
    pictures = together(batch, down, across)
    for first in range(0, batch, pictures):
        dy_RO = dy_BYXO[first : first + pictures].reshape(-1, outputs)
        (taps,) = scratch.buffers(dy_BOYX, [len(dy_RO) * 9 * channels])
        torch.mm(dy_RO, weight_OK, out=taps.view(len(dy_RO), -1))
        _gather(taps.view(-1, down, across, 3, 3, channels), dx_BHWC[first : first + pictures])
    return dx_BHWC.permute(0, 3, 1, 2)


def _gather(taps_BYX33C: Tensor, dx_BHWC: Tensor) -> None:
    """Pixel 2 y + a − 1 is the sum of the taps a of the outputs y. An even one has the tap 1 of its half alone; an odd
    one the tap 2 of the output before it, and the tap 0 of the one after it if there is one."""
    rows, columns = _places(dx_BHWC.shape[1]), _places(dx_BHWC.shape[2])
    for a in (1, 2, 0):
        for b in (1, 2, 0):
            (into_y, from_y), (into_x, from_x) = rows[a], columns[b]
            pixels_BHWC = dx_BHWC[:, into_y, into_x]
            taps_BHWC = taps_BYX33C[:, from_y, from_x, a, b]
            if a and b:
                pixels_BHWC.copy_(taps_BHWC)
            else:
                pixels_BHWC.add_(taps_BHWC)


def _places(length: int) -> tuple[tuple[slice, slice], ...]:
    """For each tap, which pixels get it and which outputs have it."""
    odd, half = length // 2, -(-length // 2)
    return (
        (slice(1, 2 * half - 2, 2), slice(1, half)),
        (slice(0, length, 2), slice(0, half)),
        (slice(1, length, 2), slice(0, odd)),
    )
