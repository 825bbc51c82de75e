"""Learning rates against diffusers' own schedulers, whole tables, exact to the last bit."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from lorac.recipe.arithmetic import warmup_steps
from lorac.train.lr import SCHEDULERS, Curve


def diffusers_table(name: str, peak: float, steps: int, warmup: int, cycles: int, power: float) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_scheduler(
        name, optimiser, num_warmup_steps=warmup, num_training_steps=steps, num_cycles=cycles, power=power
    )
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize(
    ("steps", "warmup", "cycles", "power"), [(280, 28, 1, 1.0), (101, 0, 3, 2.0), (7, 3, 2, 0.5), (1, 0, 1, 1.0)]
)
def test_equals_diffusers_at_every_step(name: str, steps: int, warmup: int, cycles: int, power: float) -> None:
    peak = 1.3e-4
    curve = Curve(name, steps, warmup, cycles, power, base=peak)
    ours = [peak * curve.factor(step) for step in range(steps)]
    assert ours == diffusers_table(name, peak, steps, warmup, cycles, power)


def test_the_articles_four_runs_warm_up_as_kohya_does() -> None:
    assert [warmup_steps(0.01, steps) for steps in (2808, 3072, 3150, 3420)] == [28, 30, 31, 34]
    assert warmup_steps(100, 2808) == 100
    assert Curve("cosine_with_restarts", 2808, 28).factor(0) == 0.0


def test_one_restart_is_plain_cosine() -> None:
    restarts, cosine = (Curve(name, 500, 5) for name in ("cosine_with_restarts", "cosine"))
    assert [restarts.factor(step) for step in range(500)] == [cosine.factor(step) for step in range(500)]
