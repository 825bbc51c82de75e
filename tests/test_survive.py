"""Running out of memory in a step: the same step again in smaller passes, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.member import Member
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Trainer
from lorac.train.survive import within_memory
from lorac.train.switches import Switches
from tests.small import base

BATCH, RATE = 4, 1e-3


def _trained(fused: bool, warnings: list[str], split: int = 1) -> tuple[Trainer, dict[str, Tensor]]:
    unet, text = base()
    lora = LoRANetwork(unet, text, NetworkSettings(4, 4.0), seed=5, merged=False)
    switches = Switches(fused=fused, beside=False)
    trainer = Trainer(unet, text, [Member(lora)], switches=switches, split=split, warn=warnings.append)
    pictures = Pictures([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(BATCH)])
    for index in range(2):
        samples = [Sample(i, 100 + 200 * i, 7 * index + i, 1.0, [320, 321 + i]) for i in range(BATCH)]
        trainer.step([(Step(index, RATE, RATE, [samples]), pictures)])
    return trainer, trainer.members[0].state()


def _failing_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool) -> None:
    """Call number `call` of a function raises torch's error, before or after it has done its work."""
    calls, plain = 0, getattr(owner, name)

    def failing(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        result = plain(*args, **more) if after or calls != call else None
        if calls == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("fused", [True, False])
def test_no_memory_in_forward(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _trained(fused, [], split=2)[1]
    _failing_once(monkeypatch, torch.nn.functional, "silu", 2, after=False)
    warnings: list[str] = []
    trainer, state = _trained(fused, warnings)
    assert trainer.split == 2
    assert len(warnings) == 1 and "each batch of 4 is done in 2 passes" in warnings[0]
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("fused", [True, False])
def test_no_memory_after_backward(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of the pass are there, and must not count twice."""
    expected = _trained(fused, [])[1]
    _failing_once(monkeypatch, torch.autograd, "backward", 2, after=True)
    warnings: list[str] = []
    trainer, state = _trained(fused, warnings)
    assert trainer.split == 2 and len(warnings) == 1
    for name, tensor in expected.items():  # Adam turns the smallest gradients into steps of the whole learning rate
        torch.testing.assert_close(state[name], tensor, rtol=2e-3, atol=0.05 * RATE, msg=name)


def test_nothing_smaller_is_left() -> None:
    splits: list[int] = []

    def attempt(split: int) -> None:
        splits.append(split)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        within_memory(attempt, 1, 3, lambda: None, lambda text: None)
    assert splits == [1, 2, 3]


def test_other_errors_are_not_survived() -> None:
    def attempt(split: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(attempt, 1, 4, lambda: None, lambda text: None)
