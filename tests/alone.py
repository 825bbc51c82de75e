"""A trainer of one LoRA, whose step takes one step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork
from lorac.sd.unet import UNet
from lorac.train.objective import Pictures
from lorac.train.slices import Step
from lorac.train.step import Member, Trainer

OF_BASE = ("clip_skip", "max_token_length", "switches", "split")


class Alone(Member):
    """A member and its trainer; takes the settings of both."""

    def __init__(self, unet: UNet, text_encoder: TextEncoder, lora: LoRANetwork, **settings: Any) -> None:
        of_base = {name: settings.pop(name) for name in OF_BASE if name in settings}
        super().__init__(lora, **settings)
        self.trainer = Trainer(unet, text_encoder, [self], **of_base)

    def step(self, step: Step, pictures: Pictures) -> Tensor:
        (loss,) = self.trainer.step([(step, pictures)])
        assert loss is not None
        return loss
