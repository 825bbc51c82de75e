"""The loss and its gradient against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels.loss import loss, loss_definition
from torch import Tensor

from lorac.train.loss import Loss
from tests.kernels import TOLERANCES, close

SHAPES = [(2, 4, 64, 64), (1, 4, 80, 40), (3, 4, 5, 7), (1, 1, 1, 1)]
MEASURES = ["l2", "l1", "huber", "smooth_l1"]
SCALE = 65536.0


def case(shape: tuple[int, ...], dtype: torch.dtype, masked: bool) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """(estimate, which `dtype` holds exactly; target, weight, mask, threshold; what the losses are multiplied by)."""
    generator = torch.Generator().manual_seed(1)
    estimate, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, threshold, times = (torch.rand(shape[0], generator=generator).double() for _ in range(3))
    mask = torch.rand(shape[0], 1, *shape[2:], generator=generator).double() if masked else None
    return estimate.to(dtype).double(), [target.float().double(), weight, mask, threshold], times * SCALE


def on(device: str, tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device, torch.float32) for tensor in tensors]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_definition(
    kernels: str, shape: tuple[int, ...], measure: str, dtype: torch.dtype, tolerance: float
) -> None:
    """With a mask and channels last, and without."""
    if shape == SHAPES[0] and dtype != torch.float16:
        pytest.skip("as it is at 512 px in float16 alone")
    masked = shape[0] != 2
    estimate, constants, times = case(shape, dtype, masked)
    wanted = loss_definition(estimate.requires_grad_(), *constants, measure)
    (gradient,) = torch.autograd.grad(wanted, estimate, times)
    order = torch.channels_last if masked else torch.contiguous_format
    own = estimate.detach().to(kernels, dtype).contiguous(memory_format=order)
    target, weight, *rest = on(kernels, constants)
    assert target is not None
    assert weight is not None
    own_times = times.to(kernels, torch.float32)
    losses = loss(own.requires_grad_(), target, weight, *rest, measure)
    (own_gradient,) = torch.autograd.grad(losses, own, own_times)
    close(losses, wanted.detach(), 2e-6)
    close(own_gradient, gradient, tolerance)
    assert own_gradient.stride() == own.stride()


def test_small_gradients_survive_float16(kernels: str) -> None:
    """Without the scale most of them would be zeros."""
    estimate, constants, times = case((1, 4, 32, 32), torch.float16, masked=False)
    estimate = estimate * 1e-3
    target, weight, *_ = on(kernels, constants)
    assert target is not None
    assert weight is not None
    near = (target * 1e-3).float()
    own = estimate.detach().to(kernels, torch.float16).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(own, near, weight), own, times.to(kernels, torch.float32))
    assert torch.count_nonzero(gradient) > 0.99 * gradient.numel()


@pytest.mark.parametrize("settings", [Loss(), Loss(loss_type="huber"), Loss(loss_type="smooth_l1", min_snr_gamma=5.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_training_has_the_same_loss_by_kernels(
    kernels: str, settings: Loss, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, (target, weight, mask, _), _ = case((3, 4, 8, 6), torch.float16, masked)
    t_B, own = torch.tensor([3, 500, 999]), on(kernels, [target, weight, mask])
    found, gradients = [], []
    for opens in (True, False):
        monkeypatch.setattr("lorac.kernels.gate.opens", lambda *_, opens=opens: opens)
        own_estimate = estimate.to(kernels, torch.float16).requires_grad_()
        loss_B = settings.of_samples(own_estimate, own[0], t_B, own[1], own[2])  # type: ignore[arg-type]
        found.append(loss_B.detach())
        gradients.append(torch.autograd.grad(loss_B, own_estimate, torch.full_like(loss_B, SCALE))[0])
    close(found[0], found[1].cpu().double(), 2e-6)
    close(gradients[0], gradients[1].cpu().double(), 1e-3)
