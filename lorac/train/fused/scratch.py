"""Memory that the frozen convolutions work in: one arena that all layers use, one after the other.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


class Scratch:
    """Buffers whose contents hold until the next convolution. They grow to the largest that was asked for and are given
    back by `forget` alone; `choice.scratch_bytes` says how much that is."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of all buffers."""
        self._arena: Tensor | None = None
        self._bordered: Tensor | None = None
        self._small: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._zeros_around: tuple[tuple[int, ...], tuple[int, int]] | None = None

    def neighbourhoods(self, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(where to write an input of this shape, the 3×3 neighbourhoods of its pixels (B, H, W, 3, 3, C), zeros beyond
        the border): views of a buffer of this shape's own."""
        key = (like_BCHW.shape, like_BCHW.dtype)
        if key not in self._small:
            batch, channels, height, width = like_BCHW.shape
            border_BHWC = like_BCHW.new_zeros(batch, height + 2, width + 2, channels)
            windows_BHW33C = border_BHWC.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
            self._small[key] = (border_BHWC[:, 1:-1, 1:-1].permute(0, 3, 1, 2), windows_BHW33C)
        return self._small[key]

    def bordered(self, like: Tensor, shape_BHWC: tuple[int, int, int, int], inside_HW: tuple[int, int]) -> Tensor:
        """A buffer of this shape, zeros but for `inside_HW` pixels from (1, 1) on, which are the caller's to write."""
        needed = prod(shape_BHWC)
        if self._bordered is None or self._bordered.numel() < needed or not _alike(self._bordered, like):
            self._bordered = self._zeros_around = None
            self._bordered = like.new_empty(needed)
        x_BHWC = self._bordered[:needed].view(shape_BHWC)
        if self._zeros_around != (shape_BHWC, inside_HW):
            height, width = inside_HW
            for around in (x_BHWC[:, 0], x_BHWC[:, height + 1 :], x_BHWC[:, :, 0], x_BHWC[:, :, width + 1 :]):
                around.zero_()
            self._zeros_around = (shape_BHWC, inside_HW)
        return x_BHWC

    def buffers(self, like: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """Flat buffers of so many elements, side by side, with anything in them."""
        total = sum(sizes)
        if self._arena is None or self._arena.numel() < total or not _alike(self._arena, like):
            self._arena = None
            self._arena = like.new_empty(total)
        return self._arena[:total].split_with_sizes(list(sizes))

    def bytes(self) -> int:
        """What all buffers take now."""
        tensors = [self._arena, self._bordered, *(inside for inside, _ in self._small.values())]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)


def _alike(tensor: Tensor, like: Tensor) -> bool:
    return tensor.dtype == like.dtype and tensor.device == like.device
