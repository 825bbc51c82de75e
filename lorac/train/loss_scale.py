"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740), without waiting for the device.

The rules and numbers are those of `torch.amp.GradScaler`: halve after a step whose gradients overflowed, and skip that
step; double after 2000 steps in a row without one. The scale is part of the training state, so a resumed run goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FIRST = 2.0**16
DOUBLE_AFTER = 2000


class LossScale:
    """The factor on the loss, a float32 scalar on the device; it stays 1 where scaling is not `needed`.

    `value` and `good_steps` keep their memory, which captured passes read.
    """

    def __init__(self, device: torch.device, needed: bool) -> None:
        self.needed = needed
        self.value = torch.tensor(FIRST if needed else 1.0, device=device)
        self.good_steps = torch.tensor(0.0, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.value if self.needed else loss

    def overflow(self, norm: Tensor) -> Tensor | None:
        """1.0 if the norm of the scaled gradients is not finite, else 0.0; None where that is not expected."""
        return (~norm.isfinite()).float() if self.needed else None

    def update(self, norm: Tensor) -> None:
        """Choose the scale of the next step from the norm of this step's scaled gradients."""
        if not self.needed:
            return
        finite = norm.isfinite()
        good_steps = torch.where(finite, self.good_steps + 1, torch.zeros_like(self.good_steps))
        double = good_steps >= DOUBLE_AFTER
        self.value.copy_(torch.where(finite, torch.where(double, self.value * 2, self.value), self.value / 2))
        self.good_steps.copy_(torch.where(double, torch.zeros_like(good_steps), good_steps))

    def state(self) -> dict[str, Tensor]:
        return {"loss_scale": self.value, "good_steps": self.good_steps}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.value.copy_(tensors["loss_scale"])
        self.good_steps.copy_(tensors["good_steps"])
