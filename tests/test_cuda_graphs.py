"""CUDA graphs, through the same code with graphs off: the bits of a trainer without, whatever the steps.

What needs a card is in `test_cuda_step.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train import cuda_graphs
from lorac.train.cuda_graphs import Graphs, Outputs, Plain
from lorac.train.helper import Inline, threads
from lorac.train.loss import Loss
from lorac.train.loss_scale import LossScale
from lorac.train.member import Member
from lorac.train.objective import Objective
from lorac.train.optimiser import Optimisation
from lorac.train.staged import ALIGNED, Staged
from lorac.train.step import Trainer
from lorac.train.switches import Switches
from tests.small import base
from tests.test_tape import CASES, TEXT, UNET, new_gang, new_trainer, pictures, step, train

CPU = torch.device("cpu")
ROOM = 2**30


@pytest.fixture(autouse=True)
def capture_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal passes."""
    monkeypatch.setattr(cuda_graphs, "BEFORE", 1)


class Refused(Plain):
    """CUDA refuses a capture, in the middle of a pass."""

    def __init__(self, device: torch.device, error: Exception) -> None:
        super().__init__(device)
        self.error, self.tried = error, 0

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        self.tried += 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "backward", self._refuse)
            work()
        raise AssertionError("there was no backward")

    def _refuse(self, *_: Any) -> None:
        raise self.error


def graphed(new: Callable[[], Trainer], capture: Plain | None = None, warnings: list[str] | None = None) -> Trainer:
    """A trainer that does as on a card."""

    def replay(device: torch.device, *_: Any, fused: bool, room: int, recover: Any, **__: Any) -> Graphs:
        return Graphs(capture or Plain(device), fused, room, recover, ([] if warnings is None else warnings).append)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorac.train.step.replay_for", replay)
        patch.setattr("lorac.train.step.helper_for", lambda device: Inline())  # updates beside a pass are a CPU's
        return new()


def plain() -> Trainer:
    return new_trainer(False)


def assert_same_state(expected: Trainer, got: Trainer) -> None:
    for one, other in zip(expected.members, got.members, strict=True):
        state = other.state()
        assert one.state().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state().items())


@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_same_bits(case: str) -> None:
    schedule, settings = CASES[case]
    expected, got = new_trainer(False, settings), graphed(lambda: new_trainer(False, settings))
    assert train(expected, schedule) == train(got, schedule)
    assert_same_state(expected, got)
    assert got.tapes.played > 0


def test_a_gang_gives_the_same_bits_also_when_one_has_no_turn() -> None:
    expected, got = new_gang(False), graphed(lambda: new_gang(False))
    shown = pictures()
    for number in range(8):
        turns = [None if n == number // 2 % 3 else (step(2 * number + n, [[n]]), shown) for n in range(2)]
        with threads(1):
            assert expected.step(turns) == got.step(turns)
    assert_same_state(expected, got)
    assert len(got.tapes.tapes()) == 3  # of both, and of each alone
    assert got.tapes.played > 3


def test_losses_by_timestep_follow_the_timestep() -> None:
    loss = Loss(loss_type="huber", min_snr_gamma=5.0, debiased_estimation_loss=True)

    def new() -> Trainer:
        unet, text = base(0, UNET, TEXT)
        member = Member(LoRANetwork(unet, text, NetworkSettings(4, 4.0), seed=1), objective=Objective(loss=loss))
        return Trainer(unet, text, [member], max_token_length=150, switches=Switches(tape=False))

    expected, got = new(), graphed(new)
    assert train(expected, [[[0]]] * 5) == train(got, [[[0]]] * 5)
    assert got.tapes.played


def test_going_on_from_a_state_gives_the_same_bits() -> None:
    schedule = [[[0]]] * 8
    expected, first, second = plain(), graphed(plain), graphed(plain)
    losses = train(expected, schedule)
    train(first, schedule[:4])
    train(second, schedule[:3])  # what its graph reads stays where it is
    assert second.tapes.played
    second.members[0].load_state(first.members[0].state())
    assert losses[4:] == train(second, schedule, 4)
    assert_same_state(expected, second)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), 1),
        (torch.OutOfMemoryError("CUDA out of memory"), 2),
    ],
)
def test_a_capture_that_is_refused_is_told_once_and_done_without(error: Exception, tries: int) -> None:
    """A lack of memory may come from what is beside graphs: without that, it is tried once more."""
    schedule, settings = CASES["accumulating, clipped"]
    warnings: list[str] = []
    refused = Refused(CPU, error)
    expected = new_trainer(False, settings)
    got = graphed(lambda: new_trainer(False, settings), refused, warnings)
    assert train(expected, schedule) == train(got, schedule)
    assert_same_state(expected, got)
    assert (refused.tried, got.tapes.played) == (tries, 0)
    (warning,) = warnings
    assert ("memory ran out" if tries == 2 else str(error)) in warning


def test_memory_that_graphs_hold_is_given_up_before_a_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of one cannot be split at all. Then they are captured anew, and given up when it happens again."""
    warnings: list[str] = []
    expected, got = plain(), graphed(plain, warnings=warnings)
    schedule = [[[0]], [[0]], [[2]], [[0]], [[0]], [[0, 1]], [[0]]]
    losses, fails, backward = train(expected, schedule), list[Exception](), torch.autograd.backward

    def failing(*arguments: Any) -> None:
        backward(*arguments)
        if fails:
            raise fails.pop()

    monkeypatch.setattr(torch.autograd, "backward", failing)
    found = train(got, schedule[:2])
    for first, last in ((2, 5), (5, 7)):
        captured = [weakref.ref(graph) for graph in got.tapes.tapes()]
        assert captured
        fails.append(torch.OutOfMemoryError("CUDA out of memory"))
        found += train(got, schedule[:last], first)
        assert [graph() for graph in captured] == [None] * len(captured)
        assert len(warnings) == (1 if last == 7 else 0)
    assert found == losses
    assert_same_state(expected, got)
    assert got.split == 1
    assert "memory ran out" in warnings[0]
    assert not got.tapes.tapes()


def double(x: Tensor, y: Tensor | None) -> tuple[Tensor]:
    assert y is None
    return ((x + 1) * 2,)


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    graphs = Graphs(Plain(CPU), True, ROOM)
    for _ in range(3):
        for rows in (1, 2, 3):
            x = torch.rand(rows)
            assert torch.equal(graphs.run("key", [x, None], double, [])[0], double(x, None)[0])
    assert len(graphs.tapes()) == 2
    assert graphs.played == 4


def test_results_are_not_those_of_a_later_run() -> None:
    outputs = torch.zeros(3)
    graphs = Graphs(Plain(CPU), True, ROOM)
    found = [graphs.run("key", [torch.full((3,), i)], lambda x: (outputs.copy_(x),), [])[0] for i in range(4)]
    assert [float(x[0]) for x in found[2:]] == [2.0, 3.0]


class Silent(Plain):
    """What is captured leaves no trace in Python when it is done again, as on a card."""

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        outputs = work()
        return lambda: outputs


def test_gradients_of_parameters_are_set_again() -> None:
    parameter, buffer = nn.Parameter(torch.zeros(3)), torch.ones(3)

    def work(x: Tensor) -> Outputs:
        parameter.grad = buffer
        return (x,)

    graphs = Graphs(Silent(CPU), True, ROOM)
    for i in range(4):
        parameter.grad = None
        graphs.run("key", [torch.full((3,), i)], work, [parameter])
        assert parameter.grad is buffer


def test_inputs_come_in_one_block_and_keep_their_place() -> None:
    ids, x, mask = torch.arange(5), torch.randn(2, 3, 7).transpose(1, 2), torch.rand(3) > 0.5
    nothing = torch.empty(0, 4)
    staged = Staged([ids, None, x, mask, nothing], CPU)
    first = list(staged.fill([ids, None, x, mask, nothing]))
    again = list(staged.fill([ids + 1, None, x * 2, ~mask, nothing]))
    assert all(one is other for one, other in zip(first, again, strict=True))
    for own, given in zip(again, [ids + 1, None, x * 2, ~mask, nothing], strict=True):
        assert (own is None and given is None) or (own is not None and given is not None and torch.equal(own, given))
    places = {own.untyped_storage().data_ptr() for own in again if own is not None}
    assert len(places) == 1
    assert all(own.storage_offset() * own.itemsize % ALIGNED == 0 for own in again if own is not None)


def test_the_loss_scale_keeps_its_place() -> None:
    """A graph reads it there."""
    scale = LossScale(CPU, needed=True)
    value, good_steps = scale.value, scale.good_steps
    scale.update(torch.tensor(1.0))
    scale.update(torch.tensor(torch.inf))
    assert (float(value), float(good_steps)) == (2.0**15, 0.0)
    scale.load_state({"loss_scale": torch.tensor(4.0), "good_steps": torch.tensor(7.0)})
    assert (float(value), float(good_steps)) == (4.0, 7.0)


def test_a_step_reads_nothing_back_from_the_device() -> None:
    """Tensors on "meta" have no numbers: to read one, to branch on one or to copy one back raises an error."""
    unet, text = base(0, UNET, TEXT)
    unet.to("meta", torch.float16), text.to("meta", torch.float16)
    objective = Objective(loss=Loss(loss_type="smooth_l1", min_snr_gamma=5.0))
    settings = Optimisation(ema_decay=0.9, scale_weight_norms=0.1)
    members = [
        Member(
            LoRANetwork(unet, text, NetworkSettings(rank, 1.0), merged=False), settings=settings, objective=objective
        )
        for rank in (4, 2)
    ]
    trainer = graphed(lambda: Trainer(unet, text, members, max_token_length=150))
    for number in range(2):
        losses = trainer.step([(step(number, [[2]]), pictures()) for _ in members])
        assert all(loss is not None and loss.is_meta for loss in losses)
    assert trainer.tapes.played == 1
    assert members[0].loss_scale.needed
    with pytest.raises(RuntimeError):
        members[0].state()
