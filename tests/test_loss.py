"""The measures and weights of the loss against kohya's formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.sd.noise import alphas_cumprod
from lorac.train.loss import Loss

TIMESTEPS = [0, 1, 250, 700, 999]


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    estimate, target = torch.randn(2, len(TIMESTEPS), 4, 6, 5, generator=generator)
    return estimate * 0.5, target, torch.tensor(TIMESTEPS), torch.tensor([1.0, 0.5, 1.0, 2.0, 1.0])


def by_hand(zero: bool = False, mask: Tensor | None = None, **settings: Any) -> list[float]:
    """The loss of each sample, number by number, in the order of `process_batch` of kohya's train_network.py."""
    estimate, target, _, weights = (tensor.double() for tensor in tensors())
    gamma, is_v = settings.get("min_snr_gamma"), settings.get("v_parameterization", False)
    losses = []
    for i, t in enumerate(TIMESTEPS):
        alpha = float(alphas_cumprod(zero)[t].double())
        snr = alpha / (1 - alpha)
        error = estimate[i] - target[i]
        c = threshold(alpha, t, **settings)
        kind = settings.get("loss_type", "l2")
        if kind == "l2":
            error = error**2
        elif kind == "l1":
            error = error.abs()
        else:
            error = 2 * ((error**2 + c**2).sqrt() - c) * (c if kind == "huber" else 1)
        if mask is not None:
            error = error * mask[i].double()
        loss = float(error.mean()) * float(weights[i])
        if gamma is not None:
            loss *= min(snr, gamma) / (snr + 1 if is_v else snr)
        bounded = min(snr, 1000)
        if settings.get("scale_v_pred_loss_like_noise_pred"):
            loss *= bounded / (bounded + 1)
        if settings.get("v_pred_like_loss"):
            loss += loss / (bounded / (bounded + 1)) * settings["v_pred_like_loss"]
        if settings.get("debiased_estimation_loss"):
            loss *= 1 / (bounded + 1) if is_v else 1 / math.sqrt(bounded)
        losses.append(loss)
    return losses


def threshold(alpha: float, t: int, **settings: Any) -> float:
    c, scale = settings.get("huber_c", 0.1), settings.get("huber_scale", 1.0)
    schedule = settings.get("huber_schedule", "snr")
    if schedule == "constant":
        return float(c * scale)
    if schedule == "exponential":
        return float(math.exp(math.log(c) / 1000 * t) * scale)
    sigma = math.sqrt((1 - alpha) / alpha) if alpha else math.inf
    return float((1 - c) / (1 + sigma) ** 2 + c)


HUBERS, SCHEDULES = ("huber", "smooth_l1"), ("snr", "exponential", "constant")
CASES: list[dict[str, Any]] = [
    {},
    {"loss_type": "l1"},
    *({"loss_type": kind, "huber_schedule": schedule} for kind in HUBERS for schedule in SCHEDULES),
    {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.3, "huber_scale": 2.0},
    {"loss_type": "smooth_l1", "huber_schedule": "constant", "huber_c": 0.3, "huber_scale": 2.0},
    {"loss_type": "huber", "huber_c": 0.3},
    {"min_snr_gamma": 5.0},
    {"min_snr_gamma": 5.0, "v_parameterization": True},
    {"debiased_estimation_loss": True},
    {"debiased_estimation_loss": True, "v_parameterization": True},
    {"scale_v_pred_loss_like_noise_pred": True, "v_parameterization": True},
    {"v_pred_like_loss": 0.3},
    {"min_snr_gamma": 1.0, "v_pred_like_loss": 0.3, "debiased_estimation_loss": True, "loss_type": "l1"},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_equals_the_formula_in_float64(settings: dict[str, Any]) -> None:
    ours = Loss(**settings).of_samples(*tensors())
    # At timestep 0 the float32 table has ᾱ so near 1 that the SNR is good for four digits.
    assert ours.tolist() == pytest.approx(by_hand(**settings), rel=2e-4)


@pytest.mark.parametrize("settings", [{"min_snr_gamma": 5.0}, {"debiased_estimation_loss": True}, {}], ids=str)
def test_zero_terminal_snr_gives_no_infinities_to_v_prediction(settings: dict[str, Any]) -> None:
    ours = Loss(v_parameterization=True, zero_terminal_snr=True, **settings).of_samples(*tensors())
    assert ours.tolist() == pytest.approx(by_hand(zero=True, v_parameterization=True, **settings), rel=2e-4)


def test_a_mask_multiplies_the_error_and_the_mean_is_over_all() -> None:
    mask = torch.rand(len(TIMESTEPS), 1, 6, 5, generator=torch.Generator().manual_seed(8))
    ours = Loss().of_samples(*tensors(), mask)
    assert ours.tolist() == pytest.approx(by_hand(mask=mask), rel=1e-5)
    assert not Loss().of_samples(*tensors(), torch.zeros_like(mask)).any()


def test_plain_l2_is_the_mean_square_times_the_weight_to_the_bit() -> None:
    estimate, target, t, weights = tensors()
    expected = torch.nn.functional.mse_loss(estimate, target, reduction="none").mean((1, 2, 3)) * weights
    assert torch.equal(Loss().of_samples(estimate, target, t, weights), expected)
