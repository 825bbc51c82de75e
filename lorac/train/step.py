"""One training step of a LoRA, as kohya-ss/sd-scripts defines it.

Shape suffixes: B batch, C latent channels, H height, W width, L tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from lorac.rng import seed64
from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS
from lorac.sd.unet import UNet
from lorac.train.average import Average
from lorac.train.fused.network import Fused
from lorac.train.helper import helper_for, keep_freed_memory, threads
from lorac.train.library import Library
from lorac.train.loss_scale import LossScale
from lorac.train.objective import Objective, Pictures
from lorac.train.optimiser import AdamW, Optimisation, Optimiser
from lorac.train.slices import Sample, Step
from lorac.train.switches import Switches

__all__ = ["Optimisation", "Trainer"]

RAW = "raw/"
"""Before the names of the factors that are trained, where the LoRA is an average of them."""


class Trainer:
    """A base, its LoRA, and the optimiser.

    The base may be float32 or, on a GPU, float16: then the loss is scaled. `trained` are the parts that learn; the
    LoRA of a part that does not stays as it is. `clip_skip` counts from 1, the last layer. `seed` is for dropout. A
    merged LoRA is trained by fused operations, which take the place of the modules of `unet` and `text_encoder`.
    """

    def __init__(
        self,
        unet: UNet,
        text_encoder: TextEncoder,
        lora: LoRANetwork,
        *,
        trained: Collection[str] = PARTS,
        clip_skip: int = 1,
        max_token_length: int = 75,
        settings: Optimisation | None = None,
        objective: Objective | None = None,
        seed: int = 0,
    ) -> None:
        keep_freed_memory()
        self.unet, self.text_encoder, self.lora, self.seed = unet, text_encoder, lora, seed
        self.clip_skip, self.max_token_length = clip_skip, max_token_length
        self.settings, self.objective = settings or Optimisation(), objective or Objective()
        self.device, self.dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        self.loss_scale = LossScale(self.device, needed=self.dtype == torch.float16)
        self.trained = [part for part in PARTS if part in trained and lora.parameters(part)]
        for part in PARTS:
            for factor in lora.parameters(part):
                factor.requires_grad_(part in self.trained)
        helper = helper_for(self.device)
        fused = lora.merged
        self.fused = Fused(unet, text_encoder, [lora], self.trained, helper, Switches()) if fused else None
        merge = self.fused.merge if self.fused else lambda part: None
        kind = AdamW if self.settings.optimizer == "adamw" else Library
        self.optimiser: Optimiser = kind(lora, self.trained, self.settings, self.loss_scale, merge, helper)
        self.average = Average(lora, self.settings.ema_decay) if self.settings.ema_decay else None

    def step(self, step: Step, pictures: Pictures) -> Tensor:
        """Do one optimiser step; returns the loss before it, a float32 scalar on the device.

        The gradients of the step's batches are averaged. The pictures of a batch have the same size.
        """
        losses = []
        for number, samples in enumerate(step.batches):
            if self.fused:
                self.fused.start(accumulating=number > 0)
            elif self.lora.dropping:
                self.lora.start_step(seed64(self.seed, "dropout", step.index, number))
            loss = self._loss(samples, pictures) / len(step.batches)
            torch.autograd.backward(self.loss_scale.scaled(loss))
            norm = self.fused.finish()[0] if self.fused else None
            losses.append(loss.detach())
        norm = torch.nn.utils.get_total_norm(self._gradients()) if norm is None else norm
        self.optimiser.apply(norm, {"text_encoder": step.lr_text, "unet": step.lr_unet})
        self._after_update()
        return torch.stack(losses).sum()

    def _loss(self, samples: Sequence[Sample], pictures: Pictures) -> Tensor:
        """The mean loss of one batch."""
        batch = self.objective.batch(samples, pictures, self.max_token_length)
        if self.fused is None:
            self.optimiser.settle()
            self.lora.refresh()
        with torch.set_grad_enabled("text_encoder" in self.trained):
            context_BLD = self.text_encoder(batch.ids.to(self.device), self.clip_skip)
        self.optimiser.settle()
        with threads(2) if self.fused else nullcontext():  # the helper has nothing to do meanwhile
            noisy_BCHW, t_B = batch.noisy.to(self.device, self.dtype), batch.timestep.to(self.device)
            estimate_BCHW = self.unet(noisy_BCHW, t_B, context_BLD)
        return self.objective.of_samples(estimate_BCHW, batch).mean()

    def _after_update(self) -> None:
        """What wants the new factors at once; plain training updates them beside the next step."""
        if self.settings.scale_weight_norms is not None:
            self.optimiser.settle()
            self.lora.scale_weight_norms(self.settings.scale_weight_norms)
        if self.average:
            self.optimiser.settle()
            self.average.update()

    def _gradients(self) -> list[Tensor]:
        factors = (factor for part in self.trained for factor in self.lora.parameters(part))
        return [factor.grad for factor in factors if factor.grad is not None]

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
        """Go on from `state()` of a trainer with the same settings."""
        self.optimiser.settle()
        self.lora.load_state(tensors)
        if self.average:
            self.average.load_state(tensors)
        raw = {name.removeprefix(RAW): tensor for name, tensor in tensors.items() if name.startswith(RAW)}
        if raw:
            self.lora.load_state(raw)
        self.optimiser.load_state(tensors)
        self.loss_scale.load_state(tensors)
