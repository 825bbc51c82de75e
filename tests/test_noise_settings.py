"""The noises of kohya's scripts: against their formulas written out, and free of how batches are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lorac.rng import Stream, seed64
from lorac.train.loss import Loss
from lorac.train.noise import Noise
from lorac.train.objective import Objective, Pictures
from lorac.train.slices import Sample

SEED = 1234567


def gaussian(shape: tuple[int, ...], purpose: str, *numbers: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed64(SEED, purpose, *numbers)))


def plain(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def latents(size: tuple[int, int] = (24, 40)) -> Tensor:
    return (
        torch.randn(4, *size, generator=torch.Generator().manual_seed(7))
        + torch.tensor([1.0, -2.0, 0.1, 0.0])[:, None, None]
    )


def test_noise_without_settings_is_plain() -> None:
    x = latents()
    noise = Noise().target(SEED, x)
    assert torch.equal(noise, plain(x.shape))
    assert Noise().input(SEED, noise) is noise


def test_noise_offset_adds_one_number_to_each_channel() -> None:
    x = latents()
    expected = plain(x.shape) + 0.05 * gaussian((4, 1, 1), "noise offset")
    assert torch.equal(Noise(noise_offset=0.05).target(SEED, x), expected)


def test_adaptive_noise_scale_follows_the_pictures_mean_and_never_goes_below_zero() -> None:
    x = latents()
    for scale in (0.02, -0.05):
        strength = [max(0.0, 0.05 + scale * abs(float(channel.double().mean()))) for channel in x]
        offset = torch.tensor(strength)[:, None, None] * gaussian((4, 1, 1), "noise offset")
        ours = Noise(noise_offset=0.05, adaptive_noise_scale=scale).target(SEED, x)
        torch.testing.assert_close(ours, plain(x.shape) + offset, rtol=0, atol=1e-6)
    assert strength[1] == 0.0


def test_random_strength_of_the_offset_lies_between_nothing_and_all() -> None:
    x = latents()
    strength = 0.1 * Stream(SEED, "noise offset strength").uniform()
    ours = Noise(noise_offset=0.1, noise_offset_random_strength=True).target(SEED, x)
    assert torch.equal(ours, plain(x.shape) + strength * gaussian((4, 1, 1), "noise offset"))
    assert 0 < strength < 0.1


@pytest.mark.parametrize("size", [(24, 40), (64, 64)])
def test_multires_noise_is_kohyas_pyramid(size: tuple[int, int]) -> None:
    """kohya's `pyramid_noise_like`, for one sample, with our draws."""
    x, ratios, levels = latents(size), Stream(SEED, "multires noise ratio"), 0
    noise = plain(x.shape)[None].double()
    upsample = torch.nn.Upsample(size=size, mode="bilinear")
    for i in range(8):
        r = ratios.uniform() * 2 + 2
        h, w = max(1, int(size[0] / (r**i))), max(1, int(size[1] / (r**i)))
        noise += upsample(gaussian((1, 4, h, w), "multires noise", i).double()) * 0.4**i
        levels += 1
        if h == 1 or w == 1:
            break
    expected = noise[0] / noise.std()
    ours = Noise(multires_noise_iterations=8, multires_noise_discount=0.4).target(SEED, x)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)
    assert 2 < levels < 8
    assert float(ours.std()) == pytest.approx(1.0, abs=1e-5)


def test_offset_comes_before_multires() -> None:
    x = latents()
    both = Noise(noise_offset=3.0, multires_noise_iterations=4).target(SEED, x)
    assert float(both.std()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("random", [False, True])
def test_input_perturbation_is_seen_but_not_to_be_predicted(random: bool) -> None:
    x, sample = latents(), Sample(0, 300, SEED, 1.0, [5])
    objective = Objective(Noise(ip_noise_gamma=0.1, ip_noise_gamma_random_strength=random))
    batch = objective.batch([sample], Pictures([x]), 75)
    strength = 0.1 * (Stream(SEED, "input perturbation strength").uniform() if random else 1.0)
    x1, more = x[None] * 0.18215, gaussian((1, *x.shape), "input perturbation")
    noisy = ddpm().add_noise(x1, plain(x1.shape) + strength * more, torch.tensor([300]))
    torch.testing.assert_close(batch.noisy, noisy, rtol=0, atol=1e-5)
    assert torch.equal(batch.target[0], plain(x.shape))


def ddpm() -> Any:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
    )


@pytest.mark.parametrize("zero", [False, True])
def test_v_prediction_has_diffusers_target(zero: bool) -> None:
    x = latents()
    samples = [Sample(0, t, SEED, 1.0, [5]) for t in (0, 500, 999)]
    batch = Objective(loss=Loss(v_parameterization=True, zero_terminal_snr=zero)).batch(samples, Pictures([x]), 75)
    scheduler = ddpm()
    if zero:
        from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

        scheduler.alphas_cumprod = (1 - rescale_zero_terminal_snr(scheduler.betas)).cumprod(0)
    x3, noise, t = x.expand(3, *x.shape) * 0.18215, plain(x.shape).expand(3, *x.shape), batch.timestep
    torch.testing.assert_close(batch.target, scheduler.get_velocity(x3, noise, t), rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.noisy, scheduler.add_noise(x3, noise, t), rtol=0, atol=1e-4)


def test_what_a_sample_sees_does_not_depend_on_its_batch() -> None:
    settings = Noise(0.1, True, 0.01, 6, 0.3, 0.1, True)
    samples = [Sample(i, 100 * i, 50 + i, 1.0, [5]) for i in range(3)]
    pictures = Pictures([latents() + i for i in range(3)])
    together = Objective(settings).batch(samples, pictures, 75)
    for i, sample in enumerate(samples):
        alone = Objective(settings).batch([sample], pictures, 75)
        assert torch.equal(alone.noisy[0], together.noisy[i])
        assert torch.equal(alone.target[0], together.target[i])


def test_mirrored_samples_take_mirrored_latents_and_masks() -> None:
    x, mirrored = latents((8, 8)), latents((8, 8)) * 2
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(1))
    pictures = Pictures([x, x], [mirrored, None], [mask, None])
    batch = Objective().batch(
        [Sample(0, 5, 1, 1.0, [5], flipped=True), Sample(0, 5, 1, 1.0, [5]), Sample(1, 5, 1, 1.0, [5])], pictures, 75
    )
    plain_noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        batch.noisy[0], ddpm().add_noise(mirrored[None] * 0.18215, plain_noise[None], torch.tensor([5]))[0]
    )
    assert batch.mask is not None
    areas = mask.double().view(8, 8, 8, 8).mean((1, 3))  # one mean for each 8 × 8 pixels
    torch.testing.assert_close(batch.mask[1, 0].double(), areas, rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.mask[0, 0].double(), areas.flip(1), rtol=0, atol=1e-6)
    assert torch.equal(batch.mask[2], torch.ones(1, 8, 8))
