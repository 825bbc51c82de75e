"""Samplers: DDIM without added noise (Song et al. 2021) and Euler ancestral (Karras et al. 2022; k-diffusion).

Shape suffixes: B pictures, C channels, H height, W width, L tokens, D text channels.
Rows are independent: a picture is the same whatever it is batched with, as its noise is passed in for each row.
Timesteps are spaced as SD1.x ships them (diffusers' "leading" with an offset of 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lorac.sd.noise import STEPS, alphas_cumprod

Method = Literal["ddim", "euler_a"]

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`eps = denoiser(x_BCHW, t_B, ctx_BLD)`: the U-Net, or anything that stands for it."""

Noise = Callable[[Tensor, int], Tensor]
"""`eps = noise(x_BCHW, t)`: the noise estimate of a whole batch at one timestep."""


def timesteps(steps: int) -> list[int]:
    """The `steps` timesteps that are visited, highest first: 1, 1 + k, 1 + 2k, … with k = 1000 // steps, reversed."""
    return [i * (STEPS // steps) + 1 for i in reversed(range(steps))]


@torch.no_grad()
def sample(
    unet: Denoiser,
    ctx_BLD: Tensor,
    uncond_BLD: Tensor,
    noise_BCHW: Tensor,
    steps: int,
    cfg: float,
    method: Method = "ddim",
    step_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Latents (scaled, as the U-Net sees them) for each row of (caption states, noise).

    `uncond_BLD` are the states of the negative prompt, B rows or one for all. `noise_BCHW` is standard normal.
    `cfg` is the guidance strength (Ho & Salimans 2022); 1 leaves the negative prompt out and halves the work.
    `step_noise(i)` gives the standard normal (B, C, H, W) that Euler ancestral adds after step i; DDIM ignores it.
    """

    def estimate(x_BCHW: Tensor, t: int) -> Tensor:
        if cfg == 1.0:
            return unet(x_BCHW, x_BCHW.new_full((len(x_BCHW),), t), ctx_BLD)
        both = torch.cat([x_BCHW, x_BCHW])
        ctx = torch.cat([uncond_BLD.expand_as(ctx_BLD), ctx_BLD])
        eps_uncond, eps = unet(both, both.new_full((len(both),), t), ctx).chunk(2)
        return torch.lerp(eps_uncond, eps, cfg)

    if method == "ddim":
        return ddim(estimate, noise_BCHW, steps)
    if step_noise is None:
        raise ValueError("euler_a needs step_noise")
    return euler_ancestral(estimate, noise_BCHW, steps, step_noise)


def ddim(estimate: Noise, x_BCHW: Tensor, steps: int) -> Tensor:
    """DDIM with η = 0, from standard normal noise (Song et al. 2021, eq. 12)."""
    alphas = alphas_cumprod().tolist()
    for t in timesteps(steps):
        alpha, before = alphas[t], alphas[max(t - STEPS // steps, 0)]
        eps = estimate(x_BCHW, t)
        clean = (x_BCHW - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        x_BCHW = before**0.5 * clean + (1 - before) ** 0.5 * eps
    return x_BCHW


def euler_ancestral(estimate: Noise, x_BCHW: Tensor, steps: int, step_noise: Callable[[int], Tensor]) -> Tensor:
    """Euler steps in σ = √((1 − ᾱ) / ᾱ), each followed by fresh noise, from standard normal noise."""
    alphas = alphas_cumprod().tolist()
    sigmas = [((1 - alphas[t]) / alphas[t]) ** 0.5 for t in timesteps(steps)] + [0.0]
    x_BCHW = x_BCHW * (sigmas[0] ** 2 + 1) ** 0.5
    for i, t in enumerate(timesteps(steps)):
        sigma, target = sigmas[i], sigmas[i + 1]
        up = (target**2 * (sigma**2 - target**2) / sigma**2) ** 0.5
        down = (target**2 - up**2) ** 0.5
        eps = estimate(x_BCHW / (sigma**2 + 1) ** 0.5, t)
        x_BCHW = x_BCHW + (down - sigma) * eps
        if target > 0:
            x_BCHW = x_BCHW + up * step_noise(i)
    return x_BCHW
