"""What makes a training step fast or small, each to be switched off for comparison.

No switch changes what is trained: results with and without differ by rounding. `benchmarks/ablation.py` measures what
each brings. Which of them are used is no part of a node's key.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Recompute(IntEnum):
    """What backward computes again instead of keeping it. Each level includes those below it."""

    NOTHING = 0
    ELEMENTWISE = 1
    """What norms, SiLU and GEGLU gave; the products x downᵀ of LoRA branches."""
    FEED_FORWARD = 2
    """The feed-forward layers."""
    TRANSFORMER = 3
    """Whole transformers: of each, only the input is kept. And no copy of the factors in the base's precision: it is
    made of each factor when it is read."""
    BLOCK = 4
    """Residual blocks too."""


@dataclass(frozen=True)
class Switches:
    """fused: backward is written out and keeps only what the frozen base needs; off: autograd over the plain modules.
    joined: q, k and v, and the keys and values of all captions, come from one product each.
    winograd: 3×3 convolutions on a CPU by Winograd's minimal filtering.
    beside: a helper thread does what the chain of layers does not wait for (small bases).
    keep_memory: the C library keeps what is freed.
    tape: steps of equal shapes are recorded once and played back (CPU, small bases).
    graphs: passes of equal shapes are captured once and launched as a CUDA graph (on a card).
    text_states: of a text encoder that is not trained, the states of each caption are computed once.
    recompute: None chooses by the size of the base: small ones keep everything.
    attention: which kernel computes it on a card, see `fused/backends.py`.
    compile: what is not fused goes through torch.compile, but for networks with dropout.
    """

    fused: bool = True
    joined: bool = True
    winograd: bool = True
    beside: bool = True
    keep_memory: bool = True
    tape: bool = True
    graphs: bool = True
    text_states: bool = True
    recompute: Recompute | None = None
    attention: str = "auto"
    compile: bool = False
