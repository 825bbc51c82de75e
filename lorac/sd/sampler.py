"""Samplers: DDIM without added noise (Song et al. 2021) and Euler ancestral (Karras et al. 2022; k-diffusion).

Shape suffixes: B pictures, C channels, H height, W width, L tokens, D text channels.
Rows are independent: a picture is the same whatever it is batched with, as its noise is passed in for each row.
Timesteps are spaced as SD1.x ships them (diffusers' "leading" with an offset of 1); with zero terminal SNR they are
"trailing", so that the first is the last one of training, pure noise (Lin et al. 2023, arXiv:2305.08891).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lorac.sd.noise import STEPS, alphas_cumprod

Method = Literal["ddim", "euler_a"]

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`out = denoiser(x_BCHW, t_B, ctx_BLD)`: the U-Net, or anything that stands for it; noise, or v."""

Estimate = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""`x0, eps = estimate(x_BCHW, t, alpha)`: the picture and the noise in a batch at one timestep, whose ᾱ is `alpha`."""

SMALLEST_ALPHA = 2.0**-24
"""In place of an ᾱ of 0 where it is divided by, as in σ = √((1 − ᾱ) / ᾱ); diffusers' Euler samplers take the same."""


def timesteps(steps: int, trailing: bool = False) -> list[int]:
    """The `steps` timesteps that are visited, highest first.

    Leading: 1, 1 + k, 1 + 2k, … with k = 1000 // steps, reversed. Trailing: 999, and on in equal steps, rounded.
    """
    if trailing:
        return [round(STEPS - i * STEPS / steps) - 1 for i in range(steps)]
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
    v_parameterization: bool = False,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Latents (float32, scaled as the U-Net sees them) for each row of (caption states, noise).

    `uncond_BLD` are the states of the negative prompt, B rows or one for all. `noise_BCHW` is standard normal, of the
    U-Net's dtype. `cfg` is the guidance strength (Ho & Salimans 2022); 1 leaves the negative prompt out and halves the
    work. `step_noise(i)` gives the standard normal (B, C, H, W) that Euler ancestral adds after step i; DDIM ignores
    it. `v_parameterization`: the U-Net gives v and not noise.
    """
    # One tensor for all steps, so that who is given it can keep what follows from it.
    both_BLD = ctx_BLD if cfg == 1.0 else torch.cat([uncond_BLD.expand_as(ctx_BLD), ctx_BLD])

    def guided(x_BCHW: Tensor, t: int) -> Tensor:
        x_BCHW = x_BCHW.to(noise_BCHW.dtype)
        if cfg == 1.0:
            return unet(x_BCHW, x_BCHW.new_full((len(x_BCHW),), t), ctx_BLD).float()
        both = torch.cat([x_BCHW, x_BCHW])
        out_uncond, out = unet(both, both.new_full((len(both),), t), both_BLD).float().chunk(2)
        return torch.lerp(out_uncond, out, cfg)

    def estimate(x_BCHW: Tensor, t: int, alpha: float) -> tuple[Tensor, Tensor]:
        out, signal, sigma = guided(x_BCHW, t), alpha**0.5, (1 - alpha) ** 0.5
        if v_parameterization:
            return signal * x_BCHW - sigma * out, signal * out + sigma * x_BCHW
        return (x_BCHW - sigma * out) / signal, out

    visited = timesteps(steps, trailing=zero_terminal_snr)
    divides = method == "euler_a" or not v_parameterization
    alphas = [max(alpha, SMALLEST_ALPHA * divides) for alpha in alphas_cumprod(zero_terminal_snr).tolist()]
    if method == "ddim":
        # The last step goes to the least noise of training, and not to none (diffusers' set_alpha_to_one = False).
        return ddim(estimate, noise_BCHW.float(), visited, [*(alphas[t] for t in visited), alphas[0]])
    if step_noise is None:
        raise ValueError("euler_a needs step_noise")
    return euler_ancestral(estimate, noise_BCHW.float(), visited, [alphas[t] for t in visited], step_noise)


def ddim(estimate: Estimate, x_BCHW: Tensor, visited: list[int], alphas: list[float]) -> Tensor:
    """DDIM with η = 0, from standard normal noise (Song et al. 2021, eq. 12). `alphas` has one more for the end."""
    for t, alpha, after in zip(visited, alphas[:-1], alphas[1:], strict=True):
        clean, eps = estimate(x_BCHW, t, alpha)
        x_BCHW = after**0.5 * clean + (1 - after) ** 0.5 * eps
    return x_BCHW


def euler_ancestral(
    estimate: Estimate, x_BCHW: Tensor, visited: list[int], alphas: list[float], step_noise: Callable[[int], Tensor]
) -> Tensor:
    """Euler steps in σ = √((1 − ᾱ) / ᾱ), each followed by fresh noise, from standard normal noise.

    A step from σ to σ′ along (x − x0) / σ is `x0 + σ′ eps`: written so, it does not cancel where σ is large.
    """
    sigmas = [((1 - alpha) / alpha) ** 0.5 for alpha in alphas] + [0.0]
    x_BCHW = x_BCHW * (sigmas[0] ** 2 + 1) ** 0.5
    for i, (t, alpha) in enumerate(zip(visited, alphas, strict=True)):
        sigma, target = sigmas[i], sigmas[i + 1]
        up = (target**2 * (sigma**2 - target**2) / sigma**2) ** 0.5
        down = (target**2 - up**2) ** 0.5
        clean, eps = estimate(x_BCHW * alpha**0.5, t, alpha)
        x_BCHW = clean + down * eps
        if target > 0:
            x_BCHW = x_BCHW + up * step_noise(i).float()
    return x_BCHW
