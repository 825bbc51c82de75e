"""A running average of the LoRA's factors, which is what the file holds (`ema_decay`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS


class Average:
    """After update n, counted from 0, a factor's average keeps `min(decay, (1 + n) / (10 + n))` of itself.

    That is the warm-up of TensorFlow's ExponentialMovingAverage: without it the average of a short run would stay near
    where the LoRA began.
    """

    def __init__(self, lora: LoRANetwork, decay: float) -> None:
        self._decay, self._updates = decay, 0
        self._factors: list[Tensor] = [factor for part in PARTS for factor in lora.parameters(part)]
        self.values = {factor: factor.detach().clone() for part in PARTS for factor in lora.parameters(part)}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the factors as they are after an optimiser step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(list(self.values.values()), self._factors, 1.0 - decay)

    def state(self) -> dict[str, Tensor]:
        """All but the averages themselves, which are kept as the LoRA."""
        return {"averaged": torch.tensor(self._updates)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()`, the averages being what the factors are now."""
        self._updates = int(tensors["averaged"])
        for factor, value in self.values.items():
            value.copy_(factor.detach())
