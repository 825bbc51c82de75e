"""Counter-based randomness: every draw is a function of (seed, purpose, counters) and of nothing else.

No generator lives between two draws, so neither resuming, nor batch order, nor the number of workers can change what a
LoRA sees. The bits come from BLAKE2b (RFC 7693), which is the same on every machine and Python version.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from hashlib import blake2b
from struct import Struct
from typing import Any

_WORDS = Struct("<8Q")


def seed64(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit seed for `purpose` at the given counters (step, sample, …); `seed` is the recipe's."""
    text = f"{purpose}\0{seed}\0{','.join(map(str, counters))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Stream:
    """A sequence of draws for one (seed, purpose, counters), computed by hashing a running block number."""

    def __init__(self, seed: int, purpose: str, *counters: int) -> None:
        self._key = seed64(seed, purpose, *counters).to_bytes(8, "little")
        self._block = 0
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 random bits."""
        if not self._words:
            block = blake2b(self._block.to_bytes(8, "little"), key=self._key).digest()
            self._words = list(_WORDS.unpack(block))
            self._block += 1
        return self._words.pop()

    def uniform(self) -> float:
        """A float in [0, 1) with 53 random bits."""
        return (self.word() >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """An integer in [0, n). The bias of the multiplication (Lemire 2019) is under n / 2^64."""
        return (self.word() * n) >> 64

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Fisher-Yates, in place."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
