"""A slice of a schedule, and its bytes.

The layout, version 2, little-endian; S steps, B batches, N samples, T ids in total:

    8 bytes   b"lorac.s2"
    6 × u32   S, B, N, T, number of the first step, max_token_length
    S × f64   learning rate of the text encoder
    S × f64   learning rate of the U-Net
    N × f64   loss weight
    N × u64   seed of the noise
    N × u32   index of the picture
    S × u32   batches in the step: more than one with gradient accumulation
    B × u32   samples in the batch
    N × u16   timestep
    N × u16   ids of the caption, without begin, end and padding
    T × u16   the ids of all captions, one after the other
    N × u8    1 for a picture shown mirrored

Equal slices have equal bytes, so a training node is keyed by their digest.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

MAGIC = b"lorac.s2"
_HEADER = struct.Struct("<8s6I")


@dataclass(frozen=True)
class Sample:
    """One picture in a step. `ids` has no begin, end or padding; `noise_seed` is for `torch.Generator.manual_seed`."""

    item: int
    timestep: int
    noise_seed: int
    weight: float
    ids: list[int]
    flipped: bool = False


@dataclass(frozen=True)
class Step:
    """One optimiser step; `index` counts from 0 over the whole run. The gradients of its batches are averaged."""

    index: int
    lr_text: float
    lr_unet: float
    batches: list[list[Sample]]


@dataclass
class Slice:
    """Consecutive steps as columns, in the order of the layout above."""

    first_step: int
    max_token_length: int
    lr_text: array[float] = field(default_factory=lambda: array("d"))
    lr_unet: array[float] = field(default_factory=lambda: array("d"))
    weight: array[float] = field(default_factory=lambda: array("d"))
    noise_seed: array[int] = field(default_factory=lambda: array("Q"))
    item: array[int] = field(default_factory=lambda: array("I"))
    batches: array[int] = field(default_factory=lambda: array("I"))
    size: array[int] = field(default_factory=lambda: array("I"))
    timestep: array[int] = field(default_factory=lambda: array("H"))
    length: array[int] = field(default_factory=lambda: array("H"))
    ids: array[int] = field(default_factory=lambda: array("H"))
    flipped: array[int] = field(default_factory=lambda: array("B"))

    @classmethod
    def of(cls, steps: Iterable[Step], first_step: int, max_token_length: int) -> Slice:
        """The columns of `steps`."""
        columns = cls(first_step, max_token_length)
        for step in steps:
            columns.lr_text.append(step.lr_text)
            columns.lr_unet.append(step.lr_unet)
            columns.batches.append(len(step.batches))
            columns.size.extend(map(len, step.batches))
            for sample in (sample for batch in step.batches for sample in batch):
                columns.weight.append(sample.weight)
                columns.noise_seed.append(sample.noise_seed)
                columns.item.append(sample.item)
                columns.timestep.append(sample.timestep)
                columns.length.append(len(sample.ids))
                columns.ids.extend(sample.ids)
                columns.flipped.append(sample.flipped)
        return columns

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.batches)

    def steps(self) -> Iterator[Step]:
        """The steps as rows."""
        samples, sizes = self._samples(), iter(self.size)
        for number, count in enumerate(self.batches):
            batches = [list(islice(samples, next(sizes))) for _ in range(count)]
            yield Step(self.first_step + number, self.lr_text[number], self.lr_unet[number], batches)

    def _samples(self) -> Iterator[Sample]:
        first = 0
        for i, length in enumerate(self.length):
            ids = self.ids[first : first + length].tolist()
            yield Sample(self.item[i], self.timestep[i], self.noise_seed[i], self.weight[i], ids, bool(self.flipped[i]))
            first += length

    def _columns(self) -> list[array[float] | array[int]]:
        return [
            self.lr_text,
            self.lr_unet,
            self.weight,
            self.noise_seed,
            self.item,
            self.batches,
            self.size,
            self.timestep,
            self.length,
            self.ids,
            self.flipped,
        ]


def encode(columns: Slice) -> bytes:
    """The slice in the layout above."""
    counts = (len(columns.batches), len(columns.size), len(columns.item), len(columns.ids))
    head = _HEADER.pack(MAGIC, *counts, columns.first_step, columns.max_token_length)
    return head + b"".join(_little_endian(column).tobytes() for column in columns._columns())


def decode(data: bytes) -> Slice:
    """The slice in `data`. Raises ValueError if the bytes are not of this layout."""
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise ValueError("not a schedule slice of version 2")
    _, steps, batches, samples, ids, first_step, max_token_length = _HEADER.unpack_from(data)
    columns = Slice(first_step, max_token_length)
    counts = (steps, steps, samples, samples, samples, steps, batches, samples, samples, ids, samples)
    sizes = [column.itemsize * count for column, count in zip(columns._columns(), counts, strict=True)]
    if len(data) != _HEADER.size + sum(sizes):
        raise ValueError("a schedule slice of the wrong length")
    position = _HEADER.size
    for column, size in zip(columns._columns(), sizes, strict=True):
        column.frombytes(data[position : position + size])
        position += size
    if sys.byteorder == "big":
        for column in columns._columns():
            column.byteswap()
    if (sum(columns.batches), sum(columns.size), sum(columns.length)) != (batches, samples, ids):
        raise ValueError("a schedule slice whose counts disagree")
    return columns


def _little_endian(column: array[float] | array[int]) -> array[float] | array[int]:
    if sys.byteorder == "little":
        return column
    swapped = column[:]
    swapped.byteswap()
    return swapped
