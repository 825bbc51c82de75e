"""The steps of one slice of the schedule, interruptible and resumable without a trace in the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import islice

import torch
from torch import Tensor

from lorac.errors import Interrupted, TrainingDiverged
from lorac.train.member import Member
from lorac.train.objective import Pictures
from lorac.train.slices import Slice, Step
from lorac.train.step import Turn

STREAK = {"cpu": 1, "cuda": 8}
"""Losses in a row that are not numbers before training stops. In float16 one may overflow; its step is skipped."""

COLLECT_EVERY = {"cpu": 1, "cuda": 32}
"""Steps between two looks at the losses: reading one waits for the device."""

State = dict[str, Tensor]


class Leg:
    """One slice of a member's schedule while it is trained: its next step, its losses, its snapshots.

    `state` is None at the start of a run, or the state after the slice before, or a snapshot taken within this slice.
    `snapshot` gets the state about every `snapshot_seconds`; going on from it gives the same bits as never having
    stopped, where a trainer has one member. `progress` is called with the number of steps done in the slice and the
    latest loss.
    """

    def __init__(
        self,
        member: Member,
        steps: Slice,
        pictures: Pictures,
        *,
        state: Mapping[str, Tensor] | None,
        progress: Callable[[int, float], None],
        snapshot: Callable[[State], None],
        snapshot_seconds: float = 30.0,
    ) -> None:
        self.member, self._slice, self._pictures = member, steps, pictures
        self._progress, self._snapshot, self._snapshot_seconds = progress, snapshot, snapshot_seconds
        self._losses = _Losses(member)
        self.done = 0
        if state is not None:
            member.load_state(state)
            self.done = int(state["step"]) - steps.first_step
            self._losses.values = state["losses"].tolist() if self.done else []
        self._steps = islice(steps.steps(), self.done, None)
        self._saved_at = time.monotonic()

    @property
    def over(self) -> bool:
        return self.done == len(self._slice)

    def turn(self) -> Turn:
        """The next step."""
        if time.monotonic() - self._saved_at >= self._snapshot_seconds:
            self.save()
            self._saved_at = time.monotonic()
        self._step = next(self._steps)
        return self._step, self._pictures

    def took(self, loss: Tensor) -> None:
        """The step is done. Raises TrainingDiverged when the losses are no longer numbers."""
        self.done += 1
        self._losses.add(self._step, loss)
        if self._losses.values:
            self._progress(self.done, self._losses.values[-1])

    def save(self) -> None:
        """Take a snapshot."""
        self._snapshot(self.state())

    def end(self) -> tuple[State, list[float]]:
        """The state after the slice, and the loss of each of its steps. Raises TrainingDiverged as `took` does."""
        return self.state(), self._losses.values

    def state(self) -> State:
        """Everything to go on from here. Raises TrainingDiverged as `took` does."""
        self._losses.collect()
        losses = torch.tensor(self._losses.values, dtype=torch.float32)
        return self.member.state() | {"step": torch.tensor(self._slice.first_step + self.done), "losses": losses}


def interrupted() -> Interrupted:
    return Interrupted("training was interrupted; the next build goes on from here")


class _Losses:
    """Losses on their way from the device: they are read in groups, and checked when they are."""

    def __init__(self, member: Member) -> None:
        self.values: list[float] = []
        self._pending: list[tuple[Step, Tensor]] = []
        self._alpha = member.lora.settings.alpha
        self._group = COLLECT_EVERY[member.device.type]
        self._streak_limit = STREAK[member.device.type]
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
