"""The samplers against diffusers' schedulers as SD1.x ships them, with a made-up denoiser."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from torch import Tensor

from lorac.sd.sampler import Method, sample, timesteps

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CTX, UNCOND = torch.randn(3, 5, 4), torch.randn(1, 5, 4)
NOISE = torch.randn(3, 4, 6, 6)


def denoiser(x_BCHW: Tensor, t_B: Tensor, ctx_BLD: Tensor) -> Tensor:
    """Something smooth that depends on all three inputs and mixes channels."""
    shift_B111 = (t_B / 1000 + ctx_BLD.mean(dim=(1, 2)))[:, None, None, None]
    return torch.tanh(0.7 * x_BCHW + 0.3 * x_BCHW.roll(1, dims=1) + shift_B111)


def guided(x_BCHW: Tensor, t: Tensor, cfg: float) -> Tensor:
    t_B = t.expand(len(x_BCHW))
    uncond = denoiser(x_BCHW, t_B, UNCOND.expand_as(CTX))
    return uncond + cfg * (denoiser(x_BCHW, t_B, CTX) - uncond)


def step_noise(i: int) -> Tensor:
    return torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(i))


@pytest.mark.parametrize("steps", [1, 7, 20, 30])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_ddim_equals_diffusers(steps: int, cfg: float) -> None:
    scheduler = DDIMScheduler(**SD1, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    assert timesteps(steps) == scheduler.timesteps.tolist()
    x_BCHW = NOISE
    for t in scheduler.timesteps:
        x_BCHW = scheduler.step(guided(x_BCHW, t, cfg), t, x_BCHW).prev_sample
    ours = sample(denoiser, CTX, UNCOND, NOISE, steps, cfg)
    assert float((ours - x_BCHW).norm() / x_BCHW.norm()) <= 1e-5


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_euler_ancestral_equals_diffusers(steps: int, cfg: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = EulerAncestralDiscreteScheduler(**SD1, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    draws = iter(range(steps))
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: step_noise(next(draws)))
    x_BCHW = NOISE * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = guided(scheduler.scale_model_input(x_BCHW, t), t, cfg)
        x_BCHW = scheduler.step(eps, t, x_BCHW).prev_sample
    ours = sample(denoiser, CTX, UNCOND, NOISE, steps, cfg, "euler_a", step_noise)
    assert float((ours - x_BCHW).norm() / x_BCHW.norm()) <= 1e-5


@pytest.mark.parametrize("method", ["ddim", "euler_a"])
def test_a_row_does_not_depend_on_its_batch(method: Method) -> None:
    def rows(part: slice) -> Tensor:
        return sample(denoiser, CTX[part], UNCOND, NOISE[part], 10, 5.0, method, lambda i: step_noise(i)[part])

    assert torch.allclose(rows(slice(None)), torch.cat([rows(slice(0, 1)), rows(slice(1, 3))]), atol=1e-6)


def test_a_row_of_uncond_for_each_picture_or_one_for_all() -> None:
    one = sample(denoiser, CTX, UNCOND, NOISE, 5, 5.0)
    each = sample(denoiser, CTX, UNCOND.expand_as(CTX), NOISE, 5, 5.0)
    assert torch.equal(one, each)


def test_euler_ancestral_asks_for_its_noise() -> None:
    with pytest.raises(ValueError, match="step_noise"):
        sample(denoiser, CTX, UNCOND, NOISE, 5, 5.0, "euler_a")
