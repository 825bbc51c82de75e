"""One training step of a LoRA, as kohya-ss/sd-scripts defines it.

Shape suffixes: B batch, C latent channels, H height, W width, K chunks of a caption, L tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS
from lorac.sd.noise import add_noise
from lorac.sd.tokenizer import chunk
from lorac.sd.unet import UNet
from lorac.sd.vae import SCALE
from lorac.train.fused import Fused
from lorac.train.helper import helper_for, keep_freed_memory, threads
from lorac.train.loss_scale import LossScale
from lorac.train.optimiser import Optimisation, Optimiser
from lorac.train.slices import Step

__all__ = ["Optimisation", "Trainer"]


class Trainer:
    """A base, its LoRA, and the optimiser.

    The base may be float32 or, on a GPU, float16: then the loss is scaled. `trained` are the parts that learn; the
    LoRA of a part that does not stays as it is. `clip_skip` counts from 1, the last layer. A merged LoRA is trained by
    fused operations, which take the place of the modules of `unet` and `text_encoder`.
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
        keep_freed_memory()
        self.unet, self.text_encoder, self.lora = unet, text_encoder, lora
        self.clip_skip, self.max_token_length = clip_skip, max_token_length
        self.device, self.dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        self.loss_scale = LossScale(self.device, needed=self.dtype == torch.float16)
        self.trained = [part for part in PARTS if part in trained and lora.parameters(part)]
        for part in PARTS:
            for factor in lora.parameters(part):
                factor.requires_grad_(part in self.trained)
        helper = helper_for(self.device)
        self.fused = Fused(unet, text_encoder, lora, self.trained, helper) if lora.merged else None
        merge = self.fused.merge if self.fused else lambda part: None
        self.optimiser = Optimiser(lora, self.trained, settings or Optimisation(), self.loss_scale, helper, merge)

    def step(self, step: Step, latents: Sequence[Tensor]) -> Tensor:
        """Do one optimiser step; returns the loss before it, a float32 scalar on the device.

        `latents` are the VAE's means (C, H, W), unscaled, one for each picture; those of a step have the same size.
        """
        (samples,) = step.batches
        x_BCHW = torch.stack([latents[sample.item] for sample in samples]) * SCALE
        noise_BCHW = torch.stack([_noise(sample.noise_seed, x_BCHW[0]) for sample in samples])
        t_B = torch.tensor([sample.timestep for sample in samples])
        ids_BKL = torch.tensor([chunk(sample.ids, self.max_token_length) for sample in samples])
        weight_B = torch.tensor([sample.weight for sample in samples], dtype=torch.float32)
        noisy_BCHW = add_noise(x_BCHW, noise_BCHW, t_B).to(self.device, self.dtype)

        if self.fused is None:
            self.optimiser.settle()
            self.lora.refresh()
        with torch.set_grad_enabled("text_encoder" in self.trained):
            context_BLD = self.text_encoder(ids_BKL.to(self.device), self.clip_skip)
        self.optimiser.settle()
        with threads(2) if self.fused else nullcontext():  # the helper has nothing to do meanwhile
            estimate_BCHW = self.unet(noisy_BCHW, t_B.to(self.device), context_BLD)
        error_BCHW = F.mse_loss(estimate_BCHW.float(), noise_BCHW.to(self.device), reduction="none")
        loss = (error_BCHW.mean((1, 2, 3)) * weight_B.to(self.device)).mean()
        torch.autograd.backward(self.loss_scale.scaled(loss))

        norm = self.fused.finish() if self.fused else torch.nn.utils.get_total_norm(self._gradients())
        self.optimiser.apply(norm, {"text_encoder": step.lr_text, "unet": step.lr_unet})
        return loss.detach()

    def _gradients(self) -> list[Tensor]:
        factors = (factor for part in self.trained for factor in self.lora.parameters(part))
        return [factor.grad for factor in factors if factor.grad is not None]

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, on the CPU, by name: the LoRA under kohya's names, the optimiser's state,
        `loss_scale` and `good_steps`."""
        self.optimiser.settle()
        tensors = self.lora.state() | self.optimiser.state() | self.loss_scale.state()
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()` of a trainer with the same LoRA settings."""
        self.optimiser.settle()
        self.lora.load_state(tensors)
        self.optimiser.load_state(tensors)
        self.loss_scale.load_state(tensors)


def _noise(seed: int, like_CHW: Tensor) -> Tensor:
    """Gaussian noise on the CPU, the same on every machine: a function of the seed and the shape."""
    return torch.randn(like_CHW.shape, generator=torch.Generator().manual_seed(seed))
