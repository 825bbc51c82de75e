"""Several runs in one pass: each goes through its own schedule, and stops on its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from lorac.errors import InputError, LoracError
from lorac.train.loop import Leg, interrupted
from lorac.train.step import Trainer


def advance(
    trainer: Trainer, legs: Mapping[int, Leg], cancelled: threading.Event
) -> tuple[list[int], dict[int, Exception]]:
    """Train the legs of all members, whose numbers they have in the order of `trainer.members`, until one is at its end
    or fails; returns (who is at the end, what stopped whom). Who fails may do so before the others' step: their legs
    are where they say, and go on as new ones.

    When `cancelled` is set, every leg takes a snapshot and Interrupted is raised.
    """
    with trainer.few_threads():
        while True:
            over = [number for number, leg in legs.items() if leg.over]
            if over:
                return over, {}
            if cancelled.is_set():
                _save(legs)
                raise interrupted()
            failed = _step(trainer, legs)
            if failed:
                return [number for number, leg in legs.items() if leg.over and number not in failed], failed


def no_memory(stepping: bool) -> InputError:
    """What to tell the user when one LoRA takes more memory than there is: in the smallest passes of a training step,
    or, where not `stepping`, beside one."""
    if stepping:
        cause = "memory ran out in a training step, with one LoRA and one sample at a time"
        return InputError.of("train", cause, "set a smaller train.resolution or network.dim, or give a --budget")
    cause = "memory ran out while the base or the LoRA was loaded or saved"
    return InputError.of("train", cause, "end other programs that hold memory, or set a smaller network.dim")


def _save(legs: Mapping[int, Leg]) -> None:
    """A disk that refuses one snapshot may take the others; who gets none goes on from an earlier one."""
    for leg in legs.values():
        try:
            leg.save()
        except LoracError:
            continue


def _step(trainer: Trainer, legs: Mapping[int, Leg]) -> dict[int, Exception]:
    turns, failed = [], dict[int, Exception]()
    for number, leg in legs.items():
        try:
            turns.append(leg.turn())
        except LoracError as error:
            failed[number] = error
    if failed:
        return failed
    losses = trainer.step(turns)
    for (number, leg), loss in zip(legs.items(), losses, strict=True):
        assert loss is not None
        try:
            leg.took(loss)
        except LoracError as error:
            failed[number] = error
    return failed
