"""One LoRA of a training: its network, what it learns from, and everything that its steps change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor

import torch
from torch import Tensor

from lorac.rng import seed64
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS
from lorac.sd.lora_stack import Stack
from lorac.train.average import Average
from lorac.train.library import Library
from lorac.train.loss_scale import LossScale
from lorac.train.objective import Objective
from lorac.train.optimiser import AdamW, Optimisation, Optimiser
from lorac.train.slices import Step

RAW = "raw/"
"""Before the names of the factors that are trained, where the LoRA is an average of them."""


class Member:
    """A LoRA and its optimiser. A `Trainer` trains one, or several at once.

    `trained` are the parts that learn; the LoRA of a part that does not stays as it is. `seed` is for dropout. Until
    `join` is called there is no optimiser.
    """

    device: torch.device
    optimiser: Optimiser
    loss_scale: LossScale
    average: Average | None

    def __init__(
        self,
        lora: LoRANetwork,
        *,
        trained: Collection[str] = PARTS,
        settings: Optimisation | None = None,
        objective: Objective | None = None,
        seed: int = 0,
    ) -> None:
        self.lora, self.seed = lora, seed
        self.settings, self.objective = settings or Optimisation(), objective or Objective()
        self.trained = [part for part in PARTS if part in trained and lora.parameters(part)]
        for part in PARTS:
            for factor in lora.parameters(part):
                factor.requires_grad_(part in self.trained)

    def join(self, device: torch.device, dtype: torch.dtype, merge: Callable[[Stack], None], helper: Executor) -> None:
        """Get ready for a base of `dtype`. The factors have found their places: fused operations may have moved them.

        `merge` is called when a stack's factors are new; `helper` may do work beside the caller's.
        """
        self.device = device
        self.loss_scale = LossScale(device, needed=dtype == torch.float16)
        kind = AdamW if self.settings.optimizer == "adamw" else Library
        self.optimiser = kind(self.lora, self.trained, self.settings, self.loss_scale, merge, helper)
        self.average = Average(self.lora, self.settings.ema_decay) if self.settings.ema_decay else None

    def start_pass(self, step: Step, number: int) -> None:
        """Before a forward pass in the plain form: attach the current factors, draw what is dropped."""
        if self.lora.dropping:
            self.lora.start_step(seed64(self.seed, "dropout", step.index, number))
        self.optimiser.settle()
        self.lora.refresh()

    def norm(self) -> Tensor:
        """Of all gradients, for the plain form."""
        factors = (factor for part in self.trained for factor in self.lora.parameters(part))
        return torch.nn.utils.get_total_norm([factor.grad for factor in factors if factor.grad is not None])

    def update(self, norm: Tensor, step: Step) -> None:
        """Use the gradients, whose total norm is `norm`. The U-Net's factors may be new only after `settle`."""
        self.optimiser.apply(norm, {"text_encoder": step.lr_text, "unet": step.lr_unet})
        if self.settings.scale_weight_norms is not None:
            self.optimiser.settle()
            self.lora.scale_weight_norms(self.settings.scale_weight_norms)
        if self.average:
            self.optimiser.settle()
            self.average.update()

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, on the CPU, by name: the LoRA as it is to be used under kohya's names, the
        optimiser's state, `loss_scale` and `good_steps`; the factors that are trained, if they are others, under
        `raw/NAME`."""
        self.optimiser.settle()
        tensors = {**self.optimiser.state(), **self.loss_scale.state(), **self.lora.state()}
        averages = self.average.values if self.average else self.optimiser.averages()
        if averages is not None:
            raw = {f"{RAW}{name}": tensor.clone() for name, tensor in self.lora.state().items()}
            tensors |= {**self.lora.named(averages), **raw, **(self.average.state() if self.average else {})}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()` of a member with the same settings."""
        self.optimiser.settle()
        self.lora.load_state(tensors)
        if self.average:
            self.average.load_state(tensors)
        raw = {name.removeprefix(RAW): tensor for name, tensor in tensors.items() if name.startswith(RAW)}
        if raw:
            self.lora.load_state(raw)
        self.optimiser.load_state(tensors)
        self.loss_scale.load_state(tensors)
