"""The DDPM noise schedule of SD1.x: 1000 steps, β from 0.00085 to 0.012, linear in √β ("scaled linear").

Ho et al. 2020 (arXiv:2006.11239) eq. 4; β range from the latent-diffusion release. With `zero_terminal_snr` the last
timestep is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

STEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012


@cache
def alphas_cumprod(zero_terminal_snr: bool = False) -> Tensor:
    """ᾱ_t for t = 0..999, float32 on the CPU: the share of the signal's variance that is left at timestep t."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, STEPS, dtype=torch.float32) ** 2
    alphas = torch.cumprod(1.0 - betas, dim=0)
    if not zero_terminal_snr:
        return alphas
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def snr(t_B: Tensor, zero_terminal_snr: bool = False) -> Tensor:
    """Signal-to-noise ratio ᾱ / (1 − ᾱ) at integer timesteps, shape (B,)."""
    alpha_B = alphas_cumprod(zero_terminal_snr).to(t_B.device)[t_B]
    return alpha_B / (1.0 - alpha_B)


def add_noise(x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, zero_terminal_snr: bool = False) -> Tensor:
    """A sample of q(x_t | x_0): `√ᾱ_t x + √(1 − ᾱ_t) noise` at integer timesteps `t_B`, one per row."""
    signal_B111, sigma_B111 = _roots(x_BCHW, t_B, zero_terminal_snr)
    return signal_B111 * x_BCHW + sigma_B111 * noise_BCHW


def velocity(x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, zero_terminal_snr: bool = False) -> Tensor:
    """What a v-prediction base estimates: `√ᾱ_t noise − √(1 − ᾱ_t) x` (Salimans & Ho 2022, arXiv:2202.00512)."""
    signal_B111, sigma_B111 = _roots(x_BCHW, t_B, zero_terminal_snr)
    return signal_B111 * noise_BCHW - sigma_B111 * x_BCHW


def _roots(x_BCHW: Tensor, t_B: Tensor, zero_terminal_snr: bool) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 − ᾱ_t) for each row of `x_BCHW`, of its dtype and device."""
    alpha_B111 = alphas_cumprod(zero_terminal_snr).to(x_BCHW.device)[t_B][:, None, None, None]
    return alpha_B111.sqrt().to(x_BCHW.dtype), (1.0 - alpha_B111).sqrt().to(x_BCHW.dtype)
