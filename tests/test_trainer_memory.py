"""A trainer that is no longer used gives back its memory: a build may train many LoRAs, and draws after it trains."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.fused.added import AddedForm
from lorac.train.member import Member
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches
from tests.small import base
from tests.test_cuda_graphs import graphed
from tests.test_tape import new_trainer, pictures, step


@pytest.mark.parametrize("kept", ["", "tape", "graph"])
def test_a_trainer_is_freed(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tape", "cuda_graphs"):
        monkeypatch.setattr(f"lorac.train.{module}.BEFORE", 1)
    trainer = graphed(lambda: new_trainer(False)) if kept == "graph" else new_trainer(kept == "tape")
    for number in range(4):
        trainer.step([(step(number, [[0]]), pictures())])
    assert bool(trainer.tapes.tapes()) == bool(kept)
    trainer.members[0].state()  # waits for the helper
    held = [weakref.ref(thing) for thing in (trainer, trainer.tapes, trainer.fused, *trainer.tapes.tapes())]
    del trainer
    gc.collect()
    assert [thing() for thing in held] == [None] * len(held)


def test_what_was_kept_for_a_backward_that_failed_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is computed again that is most of a pass, and the next try needs the room."""
    unet, text = base(0)
    member = Member(LoRANetwork(unet, text, NetworkSettings(2, 2.0), merged=False))
    trainer = Trainer(unet, text, [member], switches=Switches(recompute=Recompute.NOTHING, beside=False))
    kept: list[int] = []

    def failing(*_: object) -> None:
        kept.append(sum(form._kept is not None for form in forms()))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def forms() -> list[AddedForm]:
        return [thing for thing in gc.get_objects() if isinstance(thing, AddedForm)]

    monkeypatch.setattr(torch.autograd, "backward", failing)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step([(step(0, [[0]]), pictures())])
    assert kept[0] > 100
    assert not any(form._kept for form in forms())
