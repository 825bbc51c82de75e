"""One training step of a LoRA, as kohya-ss/sd-scripts defines it, and the state that it changes.

Shape suffixes: B batch, C latent channels, H height, W width, K chunks of a caption, L tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.sd.clip import TextEncoder
from lorac.sd.lora import PARTS, LoRANetwork
from lorac.sd.noise import add_noise
from lorac.sd.tokenizer import chunk
from lorac.sd.unet import UNet
from lorac.sd.vae import SCALE
from lorac.train.loss_scale import LossScale
from lorac.train.slices import Step


@dataclass(frozen=True)
class Optimisation:
    """AdamW's settings; the defaults are kohya's. `max_grad_norm` 0 means that gradients are not clipped."""

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0


class Trainer:
    """A base, its LoRA, and the optimiser's state.

    The base may be float32 or, on a GPU, float16: then the loss is scaled. `trained` are the parts that learn; the
    LoRA of a part that does not stays as it is. `clip_skip` counts from 1, the last layer.
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
    ) -> None:
        self.unet, self.text_encoder, self.lora = unet, text_encoder, lora
        self.clip_skip, self.max_token_length = clip_skip, max_token_length
        self.settings = settings or Optimisation()
        self.trained = [part for part in PARTS if part in trained and lora.parameters(part)]
        for part in PARTS:
            for factor in lora.parameters(part):
                factor.requires_grad_(part in self.trained)
        groups = [{"params": lora.parameters(part), "part": part} for part in self.trained]
        self.optimiser = torch.optim.AdamW(
            groups,
            betas=self.settings.betas,
            eps=self.settings.eps,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.factors = [factor for part in self.trained for factor in lora.parameters(part)]
        self.device, self.dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        self.loss_scale = LossScale(self.device, needed=self.dtype == torch.float16)

    def step(self, step: Step, latents: Sequence[Tensor]) -> Tensor:
        """Do one optimiser step; returns the loss before it, a float32 scalar on the device.

        `latents` are the VAE's means (C, H, W), unscaled, one for each picture; those of a step have the same size.
        """
        x_BCHW = torch.stack([latents[sample.item] for sample in step.samples]) * SCALE
        noise_BCHW = torch.stack([_noise(sample.noise_seed, x_BCHW[0]) for sample in step.samples])
        t_B = torch.tensor([sample.timestep for sample in step.samples])
        ids_BKL = torch.tensor([chunk(sample.ids, self.max_token_length) for sample in step.samples])
        weight_B = torch.tensor([sample.weight for sample in step.samples], dtype=torch.float32)
        noisy_BCHW = add_noise(x_BCHW, noise_BCHW, t_B).to(self.device, self.dtype)

        self.lora.refresh()
        with torch.set_grad_enabled("text_encoder" in self.trained):
            context_BLD = self.text_encoder(ids_BKL.to(self.device), self.clip_skip)
        estimate_BCHW = self.unet(noisy_BCHW, t_B.to(self.device), context_BLD)
        error_BCHW = F.mse_loss(estimate_BCHW.float(), noise_BCHW.to(self.device), reduction="none")
        loss = (error_BCHW.mean((1, 2, 3)) * weight_B.to(self.device)).mean()
        torch.autograd.backward(self.loss_scale.scaled(loss))
        self._update({"text_encoder": step.lr_text, "unet": step.lr_unet})
        return loss.detach()

    def _update(self, rates: dict[str, float]) -> None:
        """Clip, unscale and apply the gradients. AdamW's kernel divides them by `grad_scale` as it reads them."""
        norm = torch.nn.utils.get_total_norm([factor.grad for factor in self.factors if factor.grad is not None])
        limit = self.settings.max_grad_norm
        unscaled = norm / self.loss_scale.value
        excess = ((unscaled + 1e-6) / limit).clamp(min=1.0) if limit else torch.ones_like(norm)
        self.optimiser.grad_scale = self.loss_scale.value * excess  # type: ignore[attr-defined]
        self.optimiser.found_inf = self.loss_scale.overflow(norm)  # type: ignore[attr-defined]
        for group in self.optimiser.param_groups:
            group["lr"] = rates[group["part"]]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.loss_scale.update(norm)

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, on the CPU, by name:

        the LoRA under kohya's names; AdamW's moments under the same names behind `exp_avg/` and `exp_avg_sq/`;
        `updates`, the number of optimiser steps that were not skipped; `loss_scale` and `good_steps`.
        """
        tensors = self.lora.state()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors |= {f"{moment}/{name}": value for name, value in self.lora.named(self._moment(moment)).items()}
        tensors["updates"] = self._updates()
        tensors |= {"loss_scale": self.loss_scale.value, "good_steps": self.loss_scale.good_steps}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()` of a trainer with the same LoRA settings."""
        self.lora.load_state(tensors)
        moments = {moment: self._moment(moment) for moment in ("exp_avg", "exp_avg_sq")}
        for moment, values in moments.items():
            for name, view in self.lora.named(values).items():
                view.copy_(tensors[f"{moment}/{name}"])
        for factor in self.factors:
            self.optimiser.state[factor] = {
                "step": tensors["updates"].to(self.device, copy=True),
                **{moment: values[factor] for moment, values in moments.items()},
            }
        self.loss_scale.value = tensors["loss_scale"].to(self.device, copy=True)
        self.loss_scale.good_steps = tensors["good_steps"].to(self.device, copy=True)

    def _moment(self, moment: str) -> dict[nn.Parameter, Tensor]:
        """One of AdamW's moments for every factor; zeros before the first step and for what is not trained."""
        factors = [factor for part in PARTS for factor in self.lora.parameters(part)]
        return {factor: self.optimiser.state[factor].get(moment, torch.zeros_like(factor)) for factor in factors}

    def _updates(self) -> Tensor:
        updates: Tensor = self.optimiser.state[self.factors[0]].get("step", torch.zeros(()))
        return updates


def _noise(seed: int, like_CHW: Tensor) -> Tensor:
    """Gaussian noise on the CPU, the same on every machine: a function of the seed and the shape."""
    return torch.randn(like_CHW.shape, generator=torch.Generator().manual_seed(seed))
