"""Learning rates: the formulas of `diffusers.optimization`, which are also kohya's, as pure functions of the step.

`inverse_sqrt`, `cosine_with_min_lr` and `warmup_stable_decay` are those of `transformers.optimization`, called as kohya
calls them: with half of the cycles.

Step numbers count from 0, and with a warm-up step 0 has learning rate 0: the first optimiser step then only fills
the moments. That is what every SD1.x LoRA was trained with, so it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sqrt

from lorac.recipe.arithmetic import POLYNOMIAL_END, step_rules


@dataclass(frozen=True)
class Curve:
    """How a learning rate changes over `steps` optimiser steps, as a factor of what the recipe gives.

    scheduler: a key of `SCHEDULERS`; warmup: number of warm-up steps, which `constant` and `piecewise_constant` ignore;
    cycles: of the cosines; power and base (the recipe's `learning_rate`): of polynomial, whose end is absolute;
    timescale: steps of inverse_sqrt, None for the warm-up; end: the factor at which cosine_with_min_lr and
    warmup_stable_decay end; decay: steps of the latter's last part; rules: of piecewise_constant, see `step_rules`.
    """

    scheduler: str
    steps: int
    warmup: int = 0
    cycles: int = 1
    power: float = 1.0
    base: float = 1.0
    timescale: int | None = None
    end: float = 0.0
    decay: int = 0
    rules: str = "1"

    def factor(self, step: int) -> float:
        """The factor at optimiser step `step`, the same for every parameter group."""
        if step < self.warmup and self.scheduler not in _OWN_WARMUP:
            return step / self.warmup
        return SCHEDULERS[self.scheduler](self, step)

    def progress(self, step: int) -> float:
        """The share of the steps after the warm-up that lie behind `step`."""
        return (step - self.warmup) / max(1, self.steps - self.warmup)


def _constant(curve: Curve, step: int) -> float:
    return 1.0


def _linear(curve: Curve, step: int) -> float:
    return max(0.0, (curve.steps - step) / max(1, curve.steps - curve.warmup))


def _cosine(curve: Curve, step: int) -> float:
    return max(0.0, 0.5 * (1.0 + cos(pi * curve.progress(step))))


def _cosine_with_restarts(curve: Curve, step: int) -> float:
    progress = curve.progress(step)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + cos(pi * ((curve.cycles * progress) % 1.0))))


def _polynomial(curve: Curve, step: int) -> float:
    if step > curve.steps:
        return POLYNOMIAL_END / curve.base
    decay: float = (1.0 - curve.progress(step)) ** curve.power
    return ((curve.base - POLYNOMIAL_END) * decay + POLYNOMIAL_END) / curve.base


def _piecewise_constant(curve: Curve, step: int) -> float:
    pieces, last = step_rules(curve.rules)
    return next((factor for end, factor in pieces if step < end), last)


def _inverse_sqrt(curve: Curve, step: int) -> float:
    timescale = curve.timescale or curve.warmup or 10_000
    return 1.0 / sqrt((step + timescale - curve.warmup) / timescale)


def _cosine_with_min_lr(curve: Curve, step: int) -> float:
    return _waves(curve, curve.progress(step))


def _warmup_stable_decay(curve: Curve, step: int) -> float:
    if step < curve.warmup:
        return max(0.0, step / curve.warmup * (1.0 - curve.end) + curve.end)
    first = curve.steps - curve.decay
    if step < first:
        return 1.0
    return _waves(curve, (step - first) / max(1, curve.decay)) if step < curve.steps else curve.end


def _waves(curve: Curve, progress: float) -> float:
    """From 1 to the end in half as many cosine waves as there are cycles."""
    factor = 0.5 * (1.0 + cos(pi * (curve.cycles / 2) * 2.0 * progress))
    return max(0.0, factor * (1 - curve.end) + curve.end)


SCHEDULERS: dict[str, Callable[[Curve, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "piecewise_constant": _piecewise_constant,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
}
"""kohya's name → the factor after the warm-up."""

_OWN_WARMUP = ("constant", "piecewise_constant", "warmup_stable_decay")
"""Those without a warm-up, and the one whose warm-up does not begin at 0."""
