"""What the planner knows of a training, and what it may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lorac.train.memory.shapes import Sizes
from lorac.train.switches import Recompute

MERGED_LIMIT = 64 * 2**20
"""`lorac.sd.lora`'s: largest size in bytes of the adapted weights for which the merged form is used."""
TEXT_STATES = 64 * 2**20
"""`lorac.train.text_states`'s: most bytes of captions' states that are kept."""


@dataclass(frozen=True)
class Run:
    """networks: of each LoRA in the gang, rank by module; height, width in pixels of the largest bucket; batch: of one
    LoRA; chunks: of a caption; plain: LoRAs with convolutions, DoRA or dropouts, which autograd trains; cuda: float16
    base on a card, else float32 on a CPU; captions: how many different ones there may be, None for any number.
    `resolution` is the recipe's, for remedies."""

    sizes: Sizes
    networks: tuple[Mapping[str, int], ...]
    height: int = 512
    width: int = 512
    batch: int = 1
    chunks: int = 2
    optimizer: str = "adamw"
    ema: bool = False
    plain: bool = False
    cuda: bool = False
    captions: int | None = None
    resolution: int = 512

    @cached_property
    def text(self) -> bool:
        """Whether the text encoder is trained."""
        return any(path.startswith("text_model.") for path in self.networks[0])

    @property
    def element(self) -> int:
        """Bytes of a number of the base."""
        return 2 if self.cuda else 4

    @cached_property
    def merged(self) -> bool:
        adapted = sum(outputs * inputs for outputs, inputs in map(self.sizes.module, self.networks[0]))
        return not self.plain and adapted * self.element <= MERGED_LIMIT


@dataclass(frozen=True)
class Plan:
    """split: into how many passes each batch is cut. away: a text encoder that is not trained stays on the CPU, where
    it computes in float32, while the U-Net is on a card."""

    split: int = 1
    recompute: Recompute = Recompute.ELEMENTWISE
    away: bool = False
