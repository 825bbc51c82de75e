"""lorac's step, as `lorac build` does it."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from benchmarks.models import Models, schedule_step
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.helper import threads
from lorac.train.objective import Pictures
from lorac.train.step import Trainer


class LoracStep:
    """One optimiser step of a trainer; the modules of `models` are its own from now on."""

    def __init__(self, models: Models, px: int, batch: int) -> None:
        size = models.size
        self.size, self.batch = size, batch
        lora = LoRANetwork(models.unet, models.text, NetworkSettings(size.rank, float(size.rank)), size.trained)
        self.trainer = Trainer(
            models.unet,
            models.text,
            lora,
            trained=size.trained,
            clip_skip=size.clip_skip,
            max_token_length=size.tokens,
        )
        assert len(lora.adapters()) == size.modules
        self.pictures = Pictures([torch.randn(4, px // 8, px // 8) for _ in range(batch)])

    def __call__(self, index: int) -> object:
        with threads(1) if self.trainer.fused else nullcontext():
            return float(self.trainer.step(schedule_step(self.size, index, self.batch), self.pictures))
