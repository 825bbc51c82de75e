"""lorac's step, as `lorac build` does it: of one LoRA, or of several at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.models import Models, schedule_step
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.member import Member
from lorac.train.objective import Pictures
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches


class LoracStep:
    """One optimiser step of `count` LoRAs together. The modules of `models` are the trainer's own from now on."""

    def __init__(self, models: Models, px: int, batch: int, count: int = 1, switches: Switches | None = None) -> None:
        size = models.size
        self.size, self.batch = size, batch
        switches = switches or Switches()
        if models.unet.conv_in.weight.is_cuda and switches.recompute is None:  # as is planned where there is room
            switches = replace(switches, recompute=Recompute.NOTHING)
        settings = NetworkSettings(size.rank, float(size.rank))
        merged = None if switches.fused else False  # autograd does not see into merged weights
        loras = [LoRANetwork(models.unet, models.text, settings, size.trained, seed, merged) for seed in range(count)]
        assert all(len(lora.adapters()) == size.modules for lora in loras)
        self.trainer = Trainer(
            models.unet,
            models.text,
            [Member(lora, trained=size.trained) for lora in loras],
            clip_skip=size.clip_skip,
            max_token_length=size.tokens,
            switches=switches,
        )
        self.pictures = Pictures([torch.randn(4, px // 8, px // 8) for _ in range(batch)])

    def __call__(self, index: int) -> list[Tensor]:
        """The losses, which nobody waits for."""
        turn = schedule_step(self.size, index, self.batch), self.pictures
        with self.trainer.few_threads():
            losses = self.trainer.step([turn] * len(self.trainer.members))
        return [loss for loss in losses if loss is not None]

    def finish(self) -> None:
        """Wait for the helper, or for the card."""
        for member in self.trainer.members:
            member.optimiser.settle()
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
