"""What the CUDA graphs of several shapes hold in the pool that they share: simulated, since it needs no card.

    python -m benchmarks.pool [--batch 4] [--recompute elementwise]

What a pass takes and gives back comes from a step of full size without numbers (`live.py`). `Pool` is torch's
allocator, c10/cuda/CUDACachingAllocator.cpp of torch 2.10 to 2.13, as it serves a capture: blocks are rounded up to
512 bytes, the smallest free one that is large enough is taken and split, memory comes from the card in segments, and
no segment goes back. Shown is the sum of the segments after each capture, for orders of the shapes.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.common import table
from benchmarks.live import Live, as_on_a_card
from benchmarks.peaks import Setting, Size, models, step, trainer_of
from lorac.sd.clip import TextConfig
from lorac.sd.unet import UNetConfig
from lorac.train.switches import Recompute

MIB = 2**20
BLOCK, SMALL, SMALL_SEGMENT, LARGE, LARGE_SEGMENT, UNIT = 512, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB
"""Blocks up to SMALL lie in segments of their own kind; those from LARGE on get a segment each, in whole UNITs."""
SIDES = ((512, 512), (448, 576), (576, 448), (384, 640), (640, 384), (384, 576), (576, 384), (320, 704), (704, 320))
Event = tuple[int, int]
"""A storage's number and its bytes; 0 bytes: it is given back."""


@dataclass(eq=False)
class _Block:
    size: int
    free: bool = True


@dataclass
class Pool:
    """Bytes that were taken from the card."""

    reserved: int = 0
    _segments: dict[bool, list[list[_Block]]] = field(default_factory=lambda: {True: [], False: []})
    _taken: dict[int, tuple[list[_Block], _Block]] = field(default_factory=dict)

    def take(self, key: int, size: int) -> None:
        size = max(_whole(size, BLOCK), BLOCK)
        is_small = size <= SMALL
        segment, block = self._found(size, is_small)
        rest = block.size - size
        if rest >= BLOCK if is_small else rest > SMALL:
            segment.insert(segment.index(block) + 1, _Block(rest))
            block.size = size
        block.free = False
        self._taken[key] = segment, block

    def give_back(self, key: int) -> None:
        segment, block = self._taken.pop(key)
        block.free = True
        at = segment.index(block)
        if at + 1 < len(segment) and segment[at + 1].free:
            block.size += segment.pop(at + 1).size
        if at and segment[at - 1].free:
            block.size += segment.pop(at - 1).size

    def capture(self, events: Iterable[Event]) -> int:
        """What a pass does, and at its end all is given back; returns what is reserved then."""
        for key, size in events:
            if size:
                self.take(key, size)
            elif key in self._taken:
                self.give_back(key)
        for key in list(self._taken):
            self.give_back(key)
        return self.reserved

    def _found(self, size: int, is_small: bool) -> tuple[list[_Block], _Block]:
        segments = self._segments[is_small]
        fitting = [(block.size, s, b) for s, segment in enumerate(segments) for b, block in enumerate(segment)
                   if block.free and block.size >= size]  # fmt: skip
        if fitting:
            _, s, b = min(fitting)
            return segments[s], segments[s][b]
        segment = [_Block(SMALL_SEGMENT if is_small else LARGE_SEGMENT if size < LARGE else _whole(size, UNIT))]
        segments.append(segment)
        self.reserved += segment[0].size
        return segment, segment[0]


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class Recorder(Live):  # type: ignore[no-untyped-call]
    """Notes what a pass takes and gives back, while it is `on`."""

    def __init__(self) -> None:
        super().__init__("meta")
        self.on, self.events = False, list[Event]()
        self._numbers: dict[int, int] = {}

    def taken(self, key: int, size: int) -> None:
        if self.on and size:
            self._numbers[key] = len(self.events)
            self.events.append((len(self.events), size))

    def given_back(self, key: int) -> None:
        number = self._numbers.pop(key, None)
        if self.on and number is not None:
            self.events.append((number, 0))


def passes(setting: Setting, sizes: Sequence[Size]) -> list[list[Event]]:
    """The events of the one pass of a step of each size."""
    found = []
    with as_on_a_card(setting.kernels), Recorder() as recorder:
        with torch.device("meta"):
            trainer = trainer_of(models(UNetConfig(), TextConfig(), torch.float16), setting)
        step(trainer, Size(64, 64, 1), 0)  # in the first pass, weights are put in another order
        run = trainer.tapes.run

        def recorded(*given: Any) -> Any:
            recorder.events, recorder.on = [], True
            try:
                return run(*given)
            finally:
                recorder.on = False

        trainer.tapes.run = recorded  # type: ignore[method-assign,assignment]
        for index, size in enumerate(sizes, 1):
            step(trainer, size, index)
            found.append(recorder.events)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=4, help="with those of a half and a quarter")
    parser.add_argument("--recompute", choices=[level.name.lower() for level in Recompute], default="elementwise")
    options = parser.parse_args()
    sizes = [Size(*sides, options.batch) for sides in SIDES]
    sizes += [Size(*SIDES[0], each) for each in (options.batch // 4, options.batch // 2) if each]
    setting = Setting(level=Recompute[options.recompute.upper()], kernels=True)
    events = dict(zip(sizes, passes(setting, sizes), strict=True))
    ordered = sorted(sizes, key=lambda size: size.height * size.width * size.batch)
    orders = {"the largest first": ordered[::-1], "the smallest first": ordered}
    orders |= {f"at random, {n}": random.Random(n).sample(sizes, len(sizes)) for n in range(4)}
    rows = []
    for name, order in orders.items():
        pool = Pool()
        held = [pool.capture(events[size]) for size in order]
        rows.append([name, *(f"{size / MIB:.0f}" for size in held)])
    print(table(["MiB held after each capture", *map(str, range(1, len(sizes) + 1))], rows))


if __name__ == "__main__":
    main()
