"""Running out of memory in a step: the same step again in smaller passes, with the same result."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.helper import helper_for
from lorac.train.member import Member
from lorac.train.objective import Pictures
from lorac.train.optimiser import AdamW
from lorac.train.slices import Sample, Step
from lorac.train.step import Trainer
from lorac.train.survive import UpdateLost, is_out_of_memory, within_memory
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
    numbers, plain = count(1), getattr(owner, name)

    def failing(*args: Any, **more: Any) -> Any:
        number = next(numbers)  # of this call: another thread may begin the next one meanwhile
        result = plain(*args, **more) if after or number != call else None
        if number == call:
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
        within_memory(attempt, 1, 3, lambda: False, lambda text: None)
    assert splits == [1, 2, 3]


def test_other_errors_are_not_survived() -> None:
    def attempt(split: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(attempt, 1, 4, lambda: False, lambda text: None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_what_a_lack_of_memory_looks_like(error: Exception) -> None:
    assert is_out_of_memory(error)


def _of_small_base(split: int, late: float) -> tuple[Trainer, Callable[[int], None]]:
    """A trainer whose helper does nothing in the first `late` seconds, and what does its steps."""
    unet, text = base()
    member = Member(LoRANetwork(unet, text, NetworkSettings(4, 4.0), seed=5))
    trainer = Trainer(unet, text, [member], switches=Switches(tape=False), split=split)
    pictures = Pictures([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(BATCH)])

    def step(index: int) -> None:
        if index == 0:
            trainer.tapes.submit(time.sleep, late)
        samples = [Sample(i, 100 + 200 * i, 7 * index + i, 1.0, [320, 321 + i]) for i in range(BATCH)]
        trainer.step([(Step(index, RATE, RATE, [samples]), pictures)])

    return trainer, step


def test_updates_of_the_step_before_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out in the text encoder while the helper has not yet updated the U-Net's factors."""
    states = []
    for late in (0.0, 0.3):
        trainer, step = _of_small_base(split=2, late=late)
        step(0)
        if late:
            _failing_once(monkeypatch, trainer, "_context", 1, after=False)
        step(1)
        states.append(trainer.members[0].state())
    # The failed attempt at split 2 is done again at split 4.
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=2e-3, atol=0.05 * RATE, msg=name)


@pytest.mark.parametrize("late", [0.0, 0.3])  # the update that fails is done by the helper, or by who waits for it
def test_a_half_done_update_is_not_survived(late: float, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, step = _of_small_base(split=1, late=late)
    optimiser = trainer.members[0].optimiser
    assert isinstance(optimiser, AdamW)
    _failing_once(monkeypatch, next(iter(optimiser.parts["unet"].values())), "_by_torch", 1, after=True)
    step(0)
    with pytest.raises(UpdateLost):
        step(1)


def test_the_helper_leaves_the_number_of_threads() -> None:
    """What a thread sets is what later threads of the process begin with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        helper_for(torch.device("cpu")).submit(int).result()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
