"""Arithmetic that looks like a step: shapes without numbers, freed as Python frees tensors.

A `Block` stands for the memory of a tensor and counts as long as something refers to it. So the functions of
`operations` read as the operations that they stand for, and their peak is right without being written down anywhere.
"""

from __future__ import annotations


class Meter:
    """Bytes that are taken, and the most that ever were."""

    def __init__(self, element: int, keeps_middles: bool = False) -> None:
        """`keeps_middles`: layers keep what lies between their factors from forward to backward."""
        self.element, self.keeps_middles = element, keeps_middles
        self.middles: list[Block] = []
        self.now = self.peak = 0

    def new(self, elements: int, size: int = 0) -> Block:
        """A tensor of so many numbers of the base's precision, or of `size` bytes each."""
        return Block(self, elements * (size or self.element))


class Block:
    """The memory of a tensor; views of it are itself."""

    __slots__ = ("_meter", "size")

    def __init__(self, meter: Meter, size: int) -> None:
        self._meter, self.size = meter, size
        meter.now += size
        meter.peak = max(meter.peak, meter.now)

    def __del__(self) -> None:
        self._meter.now -= self.size
