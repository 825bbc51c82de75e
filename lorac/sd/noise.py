"""The DDPM noise schedule of SD1.x: 1000 steps, β from 0.00085 to 0.012, linear in √β ("scaled linear").

Ho et al. 2020 (arXiv:2006.11239) eq. 4; β range from the latent-diffusion release.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

STEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012


@cache
def alphas_cumprod() -> Tensor:
    """ᾱ_t for t = 0..999, float32 on the CPU: the share of the signal's variance that is left at timestep t."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def snr(t_B: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ / (1 − ᾱ) at integer timesteps, shape (B,)."""
    alpha_B = alphas_cumprod().to(t_B.device)[t_B]
    return alpha_B / (1.0 - alpha_B)


def add_noise(x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """A sample of q(x_t | x_0): `√ᾱ_t x + √(1 − ᾱ_t) noise` at integer timesteps `t_B`, one per row."""
    alpha_B = alphas_cumprod().to(x_BCHW.device)[t_B]
    signal_B111 = alpha_B.sqrt().to(x_BCHW.dtype)[:, None, None, None]
    sigma_B111 = (1.0 - alpha_B).sqrt().to(x_BCHW.dtype)[:, None, None, None]
    return signal_B111 * x_BCHW + sigma_B111 * noise_BCHW
