"""The samplers against diffusers' schedulers as SD1.x ships them, with a made-up denoiser."""

from __future__ import annotations

from typing import Any

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


V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (V, {"v_parameterization": True}),
    (V | ZERO_SNR, {"v_parameterization": True, "zero_terminal_snr": True}),
]


# diffusers' DDIM steps by 1000 // steps, which with trailing timesteps is to the next one only where steps divide 1000.
@pytest.mark.parametrize("steps", [1, 8, 20, 25])
@pytest.mark.parametrize(("theirs", "ours"), SETTINGS)
def test_ddim_of_v_equals_diffusers(steps: int, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    scheduler = DDIMScheduler(**SD1, clip_sample=False, set_alpha_to_one=False, **theirs)
    scheduler.set_timesteps(steps)
    assert timesteps(steps, trailing="zero_terminal_snr" in ours) == scheduler.timesteps.tolist()
    x_BCHW = NOISE
    for t in scheduler.timesteps:
        x_BCHW = scheduler.step(guided(x_BCHW, t, 7.5), t, x_BCHW).prev_sample
    found = sample(denoiser, CTX, UNCOND, NOISE, steps, 7.5, **ours)
    assert float((found - x_BCHW).norm() / x_BCHW.norm()) <= 1e-5


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(("theirs", "ours"), SETTINGS)
def test_euler_ancestral_of_v_equals_diffusers(
    steps: int, theirs: dict[str, Any], ours: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers subtracts numbers of the size of σ = 4096, with the rounding that this has in float32."""
    scheduler = EulerAncestralDiscreteScheduler(**SD1, **{"timestep_spacing": "leading", **theirs})
    scheduler.set_timesteps(steps)
    assert timesteps(steps, trailing="zero_terminal_snr" in ours) == scheduler.timesteps.tolist()
    draws = iter(range(steps))
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: step_noise(next(draws)))
    x_BCHW = NOISE * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        v = guided(scheduler.scale_model_input(x_BCHW, t), t, 7.5)
        x_BCHW = scheduler.step(v, t, x_BCHW).prev_sample
    found = sample(denoiser, CTX, UNCOND, NOISE, steps, 7.5, "euler_a", step_noise, **ours)
    assert float((found - x_BCHW).norm() / x_BCHW.norm()) <= (2e-4 if ours.get("zero_terminal_snr") else 1e-5)


@pytest.mark.parametrize("v_parameterization", [True, False])
@pytest.mark.parametrize("method", ["ddim", "euler_a"])
@pytest.mark.parametrize("steps", [3, 7])
def test_a_model_that_knows_the_picture_finds_it(method: Method, v_parameterization: bool, steps: int) -> None:
    """Whatever the sampler, from pure noise: the picture, and in DDIM the noise that is left at the first timestep."""
    picture = torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    first = roots.square().tolist()

    def oracle(x_BCHW: Tensor, t_B: Tensor, ctx_BLD: Tensor) -> Tensor:
        alpha = max(first[int(t_B[0])], 2.0**-24)
        eps = (x_BCHW.double() - alpha**0.5 * picture) / (1 - alpha) ** 0.5
        out: Tensor = alpha**0.5 * eps - (1 - alpha) ** 0.5 * picture if v_parameterization else eps
        return out.float()

    kinds = {"v_parameterization": v_parameterization, "zero_terminal_snr": True}
    found = sample(oracle, CTX, UNCOND, NOISE, steps, 1.0, method, step_noise, **kinds)
    assert torch.isfinite(found).all()
    left = (found.double() - (first[0] ** 0.5 if method == "ddim" else 1.0) * picture).norm() / picture.norm()
    assert left <= ((1 - first[0]) ** 0.5 * 1.3 if method == "ddim" else 1e-2)


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
