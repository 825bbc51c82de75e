"""The steps of one slice of the schedule, interruptible and resumable without a trace in the result."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor

from lorac.errors import Interrupted, TrainingDiverged
from lorac.train.helper import threads
from lorac.train.objective import Pictures
from lorac.train.slices import Slice, Step
from lorac.train.step import Trainer

STREAK = {"cpu": 1, "cuda": 8}
"""Losses in a row that are not numbers before training stops. In float16 one may overflow; its step is skipped."""

COLLECT_EVERY = {"cpu": 1, "cuda": 32}
"""Steps between two looks at the losses: reading one waits for the device."""

State = dict[str, Tensor]


def train_segment(
    trainer: Trainer,
    steps: Slice,
    pictures: Pictures,
    *,
    state: Mapping[str, Tensor] | None,
    progress: Callable[[int, float], None],
    cancelled: threading.Event,
    snapshot: Callable[[State], None],
    snapshot_seconds: float = 30.0,
) -> tuple[State, list[float]]:
    """Train the steps of a slice; returns the state after it and the loss of each of its steps.

    `state` is None at the start of a run, or the state after the slice before, or a snapshot taken within this slice.
    `snapshot` gets the state about every `snapshot_seconds`, and once more when `cancelled` is set, after which
    Interrupted is raised; going on from it gives the same bits as never having stopped. `progress` is called with the
    number of steps done in the slice and the latest loss.

    Raises TrainingDiverged when the losses are no longer numbers.
    """
    losses = _Losses(trainer)
    done = 0
    if state is not None:
        trainer.load_state(state)
        done = int(state["step"]) - steps.first_step
        losses.values = state["losses"].tolist() if done else []
    saved_at = time.monotonic()
    with threads(1) if trainer.fused else nullcontext():
        for step in islice(steps.steps(), done, None):
            if cancelled.is_set():
                snapshot(_state(trainer, step.index, losses))
                raise Interrupted("training was interrupted; the next build goes on from here")
            if time.monotonic() - saved_at >= snapshot_seconds:
                snapshot(_state(trainer, step.index, losses))
                saved_at = time.monotonic()
            losses.add(step, trainer.step(step, pictures))
            if losses.values:
                progress(step.index + 1 - steps.first_step, losses.values[-1])
    return _state(trainer, steps.first_step + len(steps), losses), losses.values


def _state(trainer: Trainer, next_step: int, losses: _Losses) -> State:
    losses.collect()
    counters = {"step": torch.tensor(next_step), "losses": torch.tensor(losses.values, dtype=torch.float32)}
    return trainer.state() | counters


class _Losses:
    """Losses on their way from the device: they are read in groups, and checked when they are."""

    def __init__(self, trainer: Trainer) -> None:
        self.values: list[float] = []
        self._pending: list[tuple[Step, Tensor]] = []
        self._alpha = trainer.lora.settings.alpha
        self._group = COLLECT_EVERY[trainer.device.type]
        self._streak_limit = STREAK[trainer.device.type]
        self._streak = 0

    def add(self, step: Step, loss: Tensor) -> None:
        self._pending.append((step, loss))
        if len(self._pending) >= self._group:
            self.collect()

    def collect(self) -> None:
        if not self._pending:
            return
        values = torch.stack([loss for _, loss in self._pending]).tolist()
        steps = [step for step, _ in self._pending]
        self._pending = []
        for step, value in zip(steps, values, strict=True):
            self._streak = 0 if math.isfinite(value) else self._streak + 1
            if self._streak >= self._streak_limit:
                raise TrainingDiverged(_explanation(step, value, self._alpha))
        self.values += values


def _explanation(step: Step, loss: float, alpha: float) -> str:
    return (
        f"training diverged: the loss is {loss} at step {step.index}, with learning rate {step.lr_unet:g} "
        f"(text encoder {step.lr_text:g}) and alpha {alpha:g}; give a smaller learning_rate or network.alpha, "
        "or a longer lr_warmup_steps; what was saved before this step is still good"
    )
