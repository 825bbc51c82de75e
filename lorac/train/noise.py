"""The noise that a sample is trained with: plain, with offset, of many sizes, and input perturbation.

kohya-ss/sd-scripts' `get_noise_noisy_latents_and_timesteps`, `apply_noise_offset` and `pyramid_noise_like`. Where kohya
draws once for a batch, or divides by the deviation of a batch, here it is once for each sample: every draw is a
function of the sample's seed and a purpose, so how samples are put into batches never changes what one sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorac.rng import Stream, seed64


@dataclass(frozen=True)
class Noise:
    """[loss]'s settings of noise, under the recipe's names; the defaults are plain noise."""

    noise_offset: float = 0.0
    noise_offset_random_strength: bool = False
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int = 0
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float = 0.0
    ip_noise_gamma_random_strength: bool = False

    def target(self, seed: int, x_CHW: Tensor) -> Tensor:
        """The noise that the U-Net has to find in `x_CHW`, the scaled latents; float32 on the CPU."""
        noise_CHW = torch.randn(x_CHW.shape, generator=torch.Generator().manual_seed(seed))
        if self.noise_offset:
            noise_CHW = noise_CHW + self._offset(seed, x_CHW)
        if self.multires_noise_iterations:
            noise_CHW = self._pyramid(seed, noise_CHW)
        return noise_CHW

    def input(self, seed: int, noise_CHW: Tensor) -> Tensor:
        """The noise that the U-Net sees: `target`'s, and more if the input is perturbed (arXiv:2301.11706)."""
        if not self.ip_noise_gamma:
            return noise_CHW
        strength = self.ip_noise_gamma
        if self.ip_noise_gamma_random_strength:
            strength *= Stream(seed, "input perturbation strength").uniform()
        return noise_CHW + strength * _gaussian(noise_CHW.shape, seed, "input perturbation")

    def _offset(self, seed: int, x_CHW: Tensor) -> Tensor:
        """One number for each channel, (C, 1, 1), so that the mean brightness is learnt too."""
        strength = self.noise_offset
        if self.noise_offset_random_strength:
            strength *= Stream(seed, "noise offset strength").uniform()
        strength_C11 = torch.full((len(x_CHW), 1, 1), strength)
        if self.adaptive_noise_scale is not None:
            strength_C11 = strength_C11 + self.adaptive_noise_scale * x_CHW.mean((1, 2), keepdim=True).abs()
        return strength_C11.clamp(min=0.0) * _gaussian(strength_C11.shape, seed, "noise offset")

    def _pyramid(self, seed: int, noise_CHW: Tensor) -> Tensor:
        """Coarser and coarser noise on top, then all of it at unit deviation again."""
        channels, height, width = noise_CHW.shape
        ratios = Stream(seed, "multires noise ratio")
        for level in range(self.multires_noise_iterations):
            ratio = ratios.uniform() * 2 + 2
            h, w = (max(1, int(side / ratio**level)) for side in (height, width))
            coarse_1CHW = _gaussian((1, channels, h, w), seed, "multires noise", level)
            fine_1CHW = F.interpolate(coarse_1CHW, (height, width), mode="bilinear")
            noise_CHW = noise_CHW + fine_1CHW[0] * self.multires_noise_discount**level
            if h == 1 or w == 1:
                break
        return noise_CHW / noise_CHW.std()


def _gaussian(shape: tuple[int, ...], seed: int, purpose: str, *numbers: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed64(seed, purpose, *numbers)))
