"""Several runs in one pass: each goes through its own schedule, and stops on its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from lorac.errors import LoracError
from lorac.train.loop import Leg, interrupted
from lorac.train.step import Trainer


def advance(
    trainer: Trainer, legs: Mapping[int, Leg], cancelled: threading.Event
) -> tuple[list[int], dict[int, Exception]]:
    """Train the legs of all members, whose numbers they have in the order of `trainer.members`, until one is at its end
    or fails; returns (who is at the end, what stopped whom).

    When `cancelled` is set, every leg takes a snapshot and Interrupted is raised.
    """
    with trainer.few_threads():
        while True:
            over = [number for number, leg in legs.items() if leg.over]
            if over:
                return over, {}
            if cancelled.is_set():
                for leg in legs.values():
                    leg.save()
                raise interrupted()
            failed = _step(trainer, legs)
            if failed:
                return [number for number, leg in legs.items() if leg.over and number not in failed], failed


def _step(trainer: Trainer, legs: Mapping[int, Leg]) -> dict[int, Exception]:
    failed: dict[int, Exception] = {}
    losses = trainer.step([leg.turn() for leg in legs.values()])
    for (number, leg), loss in zip(legs.items(), losses, strict=True):
        assert loss is not None
        try:
            leg.took(loss)
        except LoracError as error:
            failed[number] = error
    return failed
