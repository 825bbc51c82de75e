"""A trainer that is no longer used gives back its memory: a build may train many LoRAs, and draws after it trains."""

from __future__ import annotations

import gc
import weakref

import pytest

from tests.test_tape import new_trainer, pictures, step


@pytest.mark.parametrize("tape", [False, True])
def test_a_trainer_is_freed(tape: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorac.train.tape.BEFORE", 1)
    trainer = new_trainer(tape)
    for number in range(4):
        trainer.step([(step(number, [[0]]), pictures())])
    assert bool(trainer.tapes.tapes()) == tape
    trainer.members[0].state()  # waits for the helper
    held = [weakref.ref(thing) for thing in (trainer, trainer.tapes, trainer.fused, *trainer.tapes.tapes())]
    del trainer
    gc.collect()
    assert [thing() for thing in held] == [None] * len(held)
