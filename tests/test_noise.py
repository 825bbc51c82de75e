"""The noise schedule against diffusers' `DDPMScheduler` with SD1.x's settings."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lorac.sd import noise

REFERENCE = DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
)


def test_alphas_are_diffusers_to_the_bit() -> None:
    assert torch.equal(noise.alphas_cumprod(), REFERENCE.alphas_cumprod)


def test_added_noise_is_diffusers() -> None:
    x_BCHW, noise_BCHW = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    t_B = torch.tensor([0, 1, 500, 999])
    expected = REFERENCE.add_noise(x_BCHW, noise_BCHW, t_B)
    assert torch.allclose(noise.add_noise(x_BCHW, noise_BCHW, t_B), expected, rtol=1e-6, atol=1e-7)


def test_snr_is_diffusers() -> None:
    t_B = torch.arange(1000)
    assert torch.allclose(noise.snr(t_B), compute_snr(REFERENCE, t_B), rtol=1e-5)


def test_velocity_is_diffusers() -> None:
    x_BCHW, noise_BCHW = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    t_B = torch.tensor([0, 1, 500, 999])
    expected = REFERENCE.get_velocity(x_BCHW, noise_BCHW, t_B)
    assert torch.allclose(noise.velocity(x_BCHW, noise_BCHW, t_B), expected, rtol=1e-6, atol=1e-7)


def test_zero_terminal_snr_is_diffusers() -> None:
    rescaled = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        rescale_betas_zero_snr=True,
    )
    assert noise.alphas_cumprod(True)[-1] == 0
    assert torch.allclose(noise.alphas_cumprod(True), rescaled.alphas_cumprod, rtol=1e-3, atol=1e-6)
    x_BCHW, noise_BCHW = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t_B = torch.tensor([1, 999])
    assert torch.equal(noise.add_noise(x_BCHW, noise_BCHW, t_B, True)[1], noise_BCHW[1])
    assert torch.equal(noise.velocity(x_BCHW, noise_BCHW, t_B, True)[1], -x_BCHW[1])
