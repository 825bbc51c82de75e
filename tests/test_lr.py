"""Learning rates against diffusers' and transformers' own schedulers, whole tables, exact to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.optimization
from diffusers.optimization import get_piecewise_constant_schedule, get_scheduler

from lorac.recipe.arithmetic import step_rules, warmup_steps
from lorac.train.lr import SCHEDULERS, Curve

OF_TRANSFORMERS = ("inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay")
OF_DIFFUSERS = sorted({*SCHEDULERS} - {*OF_TRANSFORMERS, "piecewise_constant"})
SIZES = [(280, 28, 1, 1.0), (101, 0, 3, 2.0), (7, 3, 2, 0.5), (1, 0, 1, 1.0)]


def table(scheduler: Any, steps: int) -> list[float]:
    """The learning rates that a torch scheduler gives, step by step."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def dummy(peak: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)


def diffusers_table(name: str, peak: float, steps: int, warmup: int, cycles: int, power: float) -> list[float]:
    scheduler = get_scheduler(
        name, dummy(peak), num_warmup_steps=warmup, num_training_steps=steps, num_cycles=cycles, power=power
    )
    return table(scheduler, steps)


@pytest.mark.parametrize("name", OF_DIFFUSERS)
@pytest.mark.parametrize(("steps", "warmup", "cycles", "power"), SIZES)
def test_equals_diffusers_at_every_step(name: str, steps: int, warmup: int, cycles: int, power: float) -> None:
    peak = 1.3e-4
    curve = Curve(name, steps, warmup, cycles, power, base=peak)
    ours = [peak * curve.factor(step) for step in range(steps)]
    assert ours == diffusers_table(name, peak, steps, warmup, cycles, power)


@pytest.mark.parametrize("rules", ["1:10,0.1:20,0.01:30,0.005", "0.5:20,2:10,1", "0.25"])
def test_piecewise_constant_equals_diffusers_at_every_step(rules: str) -> None:
    curve = Curve("piecewise_constant", 50, warmup=7, rules=rules)
    assert [curve.factor(step) for step in range(50)] == table(get_piecewise_constant_schedule(dummy(1.0), rules), 50)


@pytest.mark.parametrize("rules", ["", "1:10", "1:x,2", "1:2:3,4", "-1", "nan", "1,2"])
def test_step_rules_that_make_no_sense_are_refused(rules: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 — float's, int's and unpacking's own
        step_rules(rules)


@pytest.mark.parametrize("timescale", [None, 50])
@pytest.mark.parametrize("warmup", [0, 28])
def test_inverse_sqrt_equals_transformers_at_every_step(warmup: int, timescale: int | None) -> None:
    scheduler = transformers.optimization.get_inverse_sqrt_schedule(dummy(1.0), warmup, timescale)
    curve = Curve("inverse_sqrt", 280, warmup, timescale=timescale)
    assert [curve.factor(step) for step in range(280)] == table(scheduler, 280)


@pytest.mark.parametrize("end", [0.0, 0.1])
@pytest.mark.parametrize(("steps", "warmup", "cycles"), [size[:3] for size in SIZES])
def test_cosine_with_min_lr_equals_transformers_at_every_step(steps: int, warmup: int, cycles: int, end: float) -> None:
    scheduler = transformers.optimization.get_cosine_with_min_lr_schedule_with_warmup(
        dummy(1.0), warmup, steps, num_cycles=cycles / 2, min_lr_rate=end
    )
    curve = Curve("cosine_with_min_lr", steps, warmup, cycles, end=end)
    assert [curve.factor(step) for step in range(steps)] == table(scheduler, steps)


@pytest.mark.parametrize("end", [0.0, 0.1])
@pytest.mark.parametrize(("steps", "warmup", "decay", "cycles"), [(280, 28, 56, 1), (101, 0, 30, 3), (40, 4, 36, 1)])
def test_warmup_stable_decay_equals_transformers_at_every_step(
    steps: int, warmup: int, decay: int, cycles: int, end: float
) -> None:
    scheduler = transformers.optimization.get_wsd_schedule(
        dummy(1.0), warmup, decay, num_training_steps=steps, min_lr_ratio=end, num_cycles=cycles / 2
    )
    curve = Curve("warmup_stable_decay", steps, warmup, cycles, end=end, decay=decay)
    assert [curve.factor(step) for step in range(steps + 3)] == table(scheduler, steps + 3)


@pytest.mark.parametrize(("steps", "warmup"), [(2808, 28), (3072, 30), (3150, 31), (3420, 34)])
def test_the_articles_four_runs_have_kohyas_learning_rates(steps: int, warmup: int) -> None:
    assert warmup_steps(0.01, steps) == warmup
    curve = Curve("cosine_with_restarts", steps, warmup)
    ours = [1e-4 * curve.factor(step) for step in range(steps)]
    assert ours == diffusers_table("cosine_with_restarts", 1e-4, steps, warmup, 1, 1.0)
    assert ours[0] == 0.0
    assert ours[warmup] == max(ours) == 1e-4
    assert ours[(steps + warmup) // 2] == pytest.approx(0.5e-4, rel=1e-3)


def test_a_number_of_warm_up_steps_is_taken_as_it_is() -> None:
    assert warmup_steps(100, 2808) == 100


def test_one_restart_is_plain_cosine() -> None:
    restarts, cosine = (Curve(name, 500, 5) for name in ("cosine_with_restarts", "cosine"))
    assert [restarts.factor(step) for step in range(500)] == [cosine.factor(step) for step in range(500)]
