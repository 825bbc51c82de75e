"""AdamW over one buffer against `torch.optim.AdamW` in float64, and against what training uses."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels import gate
from lorac.kernels.adamw import Flat, Settings, adamw, adamw_definition
from torch import Tensor, nn

from lorac.train.adamw import FusedAdamW
from lorac.train.optimiser import MOMENTS
from tests.kernels import close

SETTINGS = [Settings(), Settings((0.8, 0.95), 1e-6, 0.1), Settings((0.0, 0.9)), Settings(weight_decay=0.0)]
SIZES = [1, 1023, 2 * 1280]
DIVISOR = 1024.0


def flat(size: int, device: str, dtype: torch.dtype = torch.float32, copy: torch.dtype | None = None) -> Flat:
    factor_E = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    zeros = [torch.zeros_like(factor_E) for _ in range(2)]
    step = torch.zeros((), device=device)
    return Flat(factor_E, *zeros, step, None if copy is None else torch.full_like(factor_E, 7.0, dtype=copy))


def gradients(size: int, steps: int) -> list[Tensor]:
    """Of very different sizes, scaled."""
    generator = torch.Generator().manual_seed(2)
    sizes = 10.0 ** (torch.rand(size, generator=generator) * 6 - 6)
    return [torch.randn(size, generator=generator) * sizes * DIVISOR for _ in range(steps)]


def scalar(value: float, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, device=device, dtype=dtype)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", SIZES)
def test_kernels_equal_torch_in_float64(kernels: str, size: int, settings: Settings) -> None:
    """And so does the definition. Rates change from step to step, and the third overflows."""
    own, plain = flat(size, kernels, copy=torch.float16), flat(size, "cpu", torch.float64)
    theirs = nn.Parameter(plain.factors.clone())
    torchs = torch.optim.AdamW([theirs], betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)
    for number, gradient in enumerate(gradients(size, 4)):
        rate, overflow = 1e-2 / (number + 1), float(number == 2)
        gradient = gradient * torch.inf if overflow else gradient
        numbers = [scalar(value, kernels) for value in (DIVISOR, overflow)]
        adamw(own, gradient.to(kernels), rate, *numbers, settings)
        numbers = [scalar(value, "cpu", torch.float64) for value in (DIVISOR, overflow)]
        adamw_definition(plain, gradient.double(), rate, *numbers, settings)
        if not overflow:
            torchs.param_groups[0]["lr"] = rate
            theirs.grad = gradient.double() / DIVISOR
            torchs.step()
    state = torchs.state[theirs]
    for found in (own, plain):
        tolerance = 2e-6 if found is own else 1e-12
        close(found.factors, theirs.detach(), tolerance)
        close(found.exp_avg, state["exp_avg"], tolerance)
        close(found.exp_avg_sq, state["exp_avg_sq"], tolerance)
        assert found.step == state["step"] == 3
    assert own.copy is not None
    assert torch.equal(own.copy, own.factors.half())


@pytest.mark.parametrize("scaled", [False, True])
def test_training_takes_the_steps_of_torchs_kernel(kernels: str, scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, but for the order in which a compiler multiplies and adds, with the copy that layers read."""
    first = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(1))
    mine, theirs = (nn.Parameter(first.clone().to(kernels)) for _ in range(2))
    copies = [torch.zeros_like(first, dtype=torch.float16, device=kernels) for _ in range(2)]
    found = [FusedAdamW([{"params": [one], "lr": 1e-2}]) for one in (mine, theirs)]
    for optimiser in found:
        optimiser.grad_scale = scalar(DIVISOR, kernels) if scaled else None
    for number, gradient in enumerate(gradients(first.numel(), 3)):
        for optimiser, one, copy in zip(found, (mine, theirs), copies, strict=True):
            with monkeypatch.context() as patch:
                if one is theirs:
                    patch.setattr(gate, "opens", lambda *_: False)
                one.grad = gradient.view(first.shape).to(kernels)
                optimiser.found_inf = scalar(float(number == 1), kernels) if scaled else None
                optimiser.step({one: copy})
    close(mine, theirs.detach().cpu().double(), 5e-7)
    for moment in MOMENTS:
        close(found[0].state[mine][moment], found[1].state[theirs][moment].cpu().double(), 5e-7)
    assert found[0].state[mine]["step"] == found[1].state[theirs]["step"]
    assert torch.equal(copies[0], mine.half())
    assert torch.equal(copies[1], theirs.half())


def test_corrections_keep_their_digits(kernels: str) -> None:
    """Up factors begin at 0, so that a first step is all that there is: the rate, against the gradient."""
    own = flat(5, kernels)
    own.factors.zero_()
    adamw(own, torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], device=kernels), 1e-2)
    close(own.factors, -1e-2 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64), 5e-7)


def test_the_first_step_may_overflow(kernels: str) -> None:
    """Then no step is counted, and both corrections would be 0."""
    own = flat(100, kernels, copy=torch.bfloat16)
    before = own.factors.clone()
    adamw(own, torch.full((100,), torch.nan, device=kernels), 1e-2, *(scalar(1.0, kernels) for _ in range(2)))
    assert torch.equal(own.factors, before)
    assert not own.exp_avg.any()
    assert not own.exp_avg_sq.any()
    assert own.step == 0
    assert own.copy is not None
    assert (own.copy == 7.0).all()
