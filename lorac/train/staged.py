"""Where the inputs of a CUDA graph lie: it reads them from the same memory each time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorac.train.tape import Inputs

ALIGNED = 256
"""Bytes; where the inputs of a graph begin, as those of torch's allocator do."""


class Staged:
    """Memory of the device for inputs of these shapes. All that comes from the CPU comes in one copy.

    torch keeps the pinned memory of a copy until the device has made it, and then gives it to a later one.
    """

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self._places: dict[int, _Place] = {}
        self._size, self._pinned = 0, device.type == "cuda"
        for number, given in enumerate(inputs):
            if given is not None and given.is_cpu:
                self._places[number] = _Place(self._size, given.nbytes, given.dtype, given.shape)
                self._size += -(-given.nbytes // ALIGNED) * ALIGNED
        self._bytes = torch.zeros(self._size, dtype=torch.uint8, device=device)
        self.tensors = [
            self._places[number].of(self._bytes) if number in self._places else _like(given)
            for number, given in enumerate(inputs)
        ]

    def fill(self, inputs: Inputs) -> Inputs:
        """Copy `inputs` here; returns the tensors that hold them from now on."""
        staging = torch.empty(self._size, dtype=torch.uint8, pin_memory=self._pinned)
        for number, (own, given) in enumerate(zip(self.tensors, inputs, strict=True)):
            if own is not None and given is not None:
                (self._places[number].of(staging) if number in self._places else own).copy_(given)
        self._bytes.copy_(staging, non_blocking=True)
        return self.tensors


class _Place(NamedTuple):
    """Where an input lies in a block of bytes."""

    start: int
    size: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, block: Tensor) -> Tensor:
        return block[self.start : self.start + self.size].view(self.dtype).view(self.shape)


def _like(given: Tensor | None) -> Tensor | None:
    return None if given is None else torch.zeros_like(given)
