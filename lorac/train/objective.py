"""What the U-Net is shown and has to say about it, for training and for validation.

Shape suffixes: B batch, C latent channels, H height, W width, K chunks of a caption, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorac.sd.noise import add_noise, velocity
from lorac.sd.tokenizer import chunk
from lorac.sd.vae import SCALE
from lorac.train.loss import Loss
from lorac.train.noise import Noise
from lorac.train.slices import Sample


@dataclass(frozen=True)
class Pictures:
    """What is trained, by `Sample.item`.

    latents: of the VAE, unscaled, (C, H, W), float32 on the CPU; flipped: those of the mirrored pictures; masks: of
    (height, width) in pixels, from 0 to 1, None for a picture that counts everywhere. Without masks all count.
    """

    latents: Sequence[Tensor]
    flipped: Sequence[Tensor | None] = ()
    masks: Sequence[Tensor | None] = ()

    def latent(self, sample: Sample) -> Tensor:
        latent_CHW = self.flipped[sample.item] if sample.flipped else self.latents[sample.item]
        assert latent_CHW is not None, f"picture {sample.item} has no mirrored latents"
        return latent_CHW

    def mask(self, sample: Sample) -> Tensor | None:
        """(1, H, W), of the latent's size."""
        mask_HW = self.masks[sample.item] if self.masks else None
        if mask_HW is None:
            return None
        seen_HW = mask_HW.flip(1) if sample.flipped else mask_HW
        return F.interpolate(seen_HW[None, None], self.latents[sample.item].shape[1:], mode="area")[0]


@dataclass(frozen=True)
class Batch:
    """Samples as tensors on one device; the samples of a batch have the same size.

    ids (B, K, L); noisy latents and target (B, C, H, W); timestep and weight (B,); mask (B, 1, H, W) if there is one.
    """

    ids: Tensor
    noisy: Tensor
    target: Tensor
    timestep: Tensor
    weight: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The noise that is added, and the loss of what the U-Net makes of it."""

    noise: Noise = field(default_factory=Noise)
    loss: Loss = field(default_factory=Loss)

    @classmethod
    def of(cls, loss: Mapping[str, Any], prediction: Mapping[str, Any]) -> Objective:
        """From [loss] and what the base predicts, as a node's params have them."""
        given = {**loss, **prediction}
        noise, error = ({f.name: given[f.name] for f in fields(kind) if f.name in given} for kind in (Noise, Loss))
        return cls(Noise(**noise), Loss(**error))

    def batch(self, samples: Sequence[Sample], pictures: Pictures, max_token_length: int) -> Batch:
        """What the U-Net sees and has to predict, on the CPU."""
        latents = [pictures.latent(sample) * SCALE for sample in samples]
        noises = [self.noise.target(sample.noise_seed, x_CHW) for sample, x_CHW in zip(samples, latents, strict=True)]
        seen = [self.noise.input(sample.noise_seed, noise) for sample, noise in zip(samples, noises, strict=True)]
        x_BCHW, noise_BCHW, t_B = torch.stack(latents), torch.stack(noises), torch.tensor([s.timestep for s in samples])
        zero = self.loss.zero_terminal_snr
        return Batch(
            ids=torch.tensor([chunk(sample.ids, max_token_length) for sample in samples]),
            noisy=add_noise(x_BCHW, torch.stack(seen), t_B, zero),
            target=velocity(x_BCHW, noise_BCHW, t_B, zero) if self.loss.v_parameterization else noise_BCHW,
            timestep=t_B,
            weight=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
            mask=_masks([pictures.mask(sample) for sample in samples], x_BCHW),
        )

    def of_samples(self, estimate_BCHW: Tensor, batch: Batch) -> Tensor:
        """The loss of each sample, (B,), on the estimate's device."""
        device = estimate_BCHW.device
        mask_B1HW = None if batch.mask is None else batch.mask.to(device)
        target_BCHW, t_B, weight_B = batch.target.to(device), batch.timestep.to(device), batch.weight.to(device)
        return self.loss.of_samples(estimate_BCHW, target_BCHW, t_B, weight_B, mask_B1HW)


def packed(batches: Sequence[Batch]) -> list[Tensor | None]:
    """The tensors of batches one after the other."""
    return [getattr(batch, field.name) for batch in batches for field in fields(Batch)]


def unpacked(tensors: Sequence[Tensor | None]) -> list[Batch]:
    """The inverse of `packed`."""
    width = len(fields(Batch))
    return [Batch(*tensors[i : i + width]) for i in range(0, len(tensors), width)]  # type: ignore[arg-type]


def _masks(masks: Sequence[Tensor | None], x_BCHW: Tensor) -> Tensor | None:
    """The masks as one tensor with ones for pictures that have none; None where none has one."""
    if all(mask is None for mask in masks):
        return None
    return torch.stack([torch.ones(1, *x_BCHW.shape[2:]) if mask is None else mask for mask in masks])
