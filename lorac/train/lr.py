"""Learning rates: the formulas of `diffusers.optimization`, which are also kohya's, as pure functions of the step.

Step numbers count from 0, and with a warm-up step 0 has learning rate 0: the first optimiser step then only fills
the moments. That is what every SD1.x LoRA was trained with, so it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from lorac.recipe.arithmetic import POLYNOMIAL_END


@dataclass(frozen=True)
class Curve:
    """How a learning rate changes over `steps` optimiser steps, as a factor of what the recipe gives.

    scheduler: a key of `SCHEDULERS`; warmup: number of warm-up steps, which `constant` ignores; cycles: of
    cosine_with_restarts; power and base (the recipe's `learning_rate`): of polynomial, whose end is absolute.
    """

    scheduler: str
    steps: int
    warmup: int = 0
    cycles: int = 1
    power: float = 1.0
    base: float = 1.0

    def factor(self, step: int) -> float:
        """The factor at optimiser step `step`, the same for every parameter group."""
        if self.scheduler != "constant" and step < self.warmup:
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


SCHEDULERS: dict[str, Callable[[Curve, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}
"""kohya's name → the factor after the warm-up."""
