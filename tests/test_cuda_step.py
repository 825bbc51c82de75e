"""The training step on a card: against the CPU's, with graphs and without, without a wait, in steady memory.

`test_cuda_graphs.py` has what can be seen without a card.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.cuda_graphs import BEFORE, Cuda, Graphs
from lorac.train.loss import Loss
from lorac.train.member import Member
from lorac.train.objective import Objective
from lorac.train.optimiser import Optimisation
from lorac.train.slices import Step
from lorac.train.step import Trainer
from lorac.train.switches import Switches
from tests.small import base
from tests.test_tape import pictures, sample

pytestmark = pytest.mark.gpu

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
HALF, SINGLE = torch.float16, torch.float32
BOTH = ("text_encoder", "unet")
ENOUGH = BEFORE + 2
"""Equal steps, the last of which is launched as a graph for the second time."""


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same numbers at each run, and those of float32 where that is asked for."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.use_deterministic_algorithms(before[1])


def new_trainer(
    device: torch.device = CUDA,
    dtype: torch.dtype = HALF,
    *,
    graphs: bool = True,
    count: int = 1,
    merged: bool = False,
    targets: tuple[str, ...] = BOTH,
    room: int = 2**30,
    **settings: Any,
) -> Trainer:
    """Its base has numbers that float16 has; its LoRAs have learnt already, so that all factors have gradients."""
    unet, text = base(0)
    unet.half().to(device, dtype), text.half().to(device, dtype)
    objective = Objective(loss=Loss(min_snr_gamma=5.0))
    members = []
    for number in range(count):
        lora = LoRANetwork(unet, text, NetworkSettings(4 - number, 4.0), targets, number, merged)
        members.append(Member(lora, trained=targets, settings=Optimisation(**settings), objective=objective))
    switches = Switches(graphs=graphs, tape=False, beside=False)
    trainer = Trainer(unet, text, members, max_token_length=150, switches=switches, tapes=room)
    generator = torch.Generator().manual_seed(7)
    for member in members:
        state = member.state()
        for name in (name for name in state if name.startswith("lora_") and name.endswith("up.weight")):
            state[name] = 0.02 * torch.randn(state[name].shape, generator=generator)
        member.load_state(state)
    return trainer


def step(number: int, batches: list[list[int]], tokens: int = 20) -> Step:
    return Step(
        number, 1e-3, 1e-3, [[sample(3 * number + i, item, tokens) for i, item in enumerate(b)] for b in batches]
    )


def train(trainer: Trainer, schedule: list[list[list[int]]], first: int = 0) -> list[list[float]]:
    """The losses of all members at each step."""
    losses = []
    for number, batches in enumerate(schedule, first):
        turns = [(step(10 * number + n, batches), pictures()) for n in range(len(trainer.members))]
        losses.append(trainer.step(turns))
    return [[float(loss) for loss in found if loss is not None] for found in losses]


def assert_same_state(expected: Trainer, got: Trainer) -> None:
    for one, other in zip(expected.members, got.members, strict=True):
        state = other.state()
        assert [name for name, tensor in one.state().items() if not torch.equal(tensor, state[name])] == []


def gradients(trainer: Trainer) -> Tensor:
    """Of the first step, unscaled: a tenth of them is in the moments."""
    state = trainer.members[0].state()
    return torch.cat([10 * state[name].flatten() for name in sorted(state) if "exp_avg/" in name])


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(SINGLE, 1e-4), (HALF, 2e-2)])
@pytest.mark.parametrize("batch", [[0], [2], [0, 1]])
def test_the_step_is_that_of_the_cpu(dtype: torch.dtype, tolerance: float, merged: bool, batch: list[int]) -> None:
    expected, got = (
        new_trainer(device, kind, merged=merged, max_grad_norm=0.0) for device, kind in ((CPU, SINGLE), (CUDA, dtype))
    )
    (loss,), (found,) = train(expected, [[batch]])[0], train(got, [[batch]])[0]
    assert found == pytest.approx(loss, rel=tolerance)
    wanted = gradients(expected)
    assert float((gradients(got) - wanted).norm() / wanted.norm()) < tolerance


SCHEDULES = {
    "one picture": [[[0]]] * (2 * ENOUGH),
    "accumulating": [[[0], [1]]] * ENOUGH,
    "shapes in turn": [[[0]], [[2]], [[0, 1]], [[2], [0, 1]]] * ENOUGH,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_a_graph_gives_the_same_bits(schedule: str, count: int, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = {"ema_decay": 0.9, "scale_weight_norms": 0.5}
    expected = new_trainer(dtype=dtype, graphs=False, count=count, **settings)
    got = new_trainer(dtype=dtype, count=count, **settings)
    assert train(expected, SCHEDULES[schedule]) == train(got, SCHEDULES[schedule])
    assert_same_state(expected, got)
    assert not got.tapes.failures
    assert got.tapes.played > 0


def test_a_merged_small_base_and_one_that_has_no_turn() -> None:
    expected, got = (new_trainer(graphs=graphs, count=2, merged=True) for graphs in (False, True))
    for number in range(3 * ENOUGH):
        turns = [None if n == number % 3 else (step(number + 50 * n, [[n]]), pictures()) for n in range(2)]
        for loss, found in zip(expected.step(turns), got.step(turns), strict=True):
            assert (loss is None and found is None) or float(loss) == float(found)  # type: ignore[arg-type]
    assert_same_state(expected, got)
    assert len(got.tapes.tapes()) == 3


def test_shapes_that_have_no_room_beside_each_other_give_the_same_bits() -> None:
    """A new one begins when graphs of others are there."""
    schedule = [[[0]]] * ENOUGH + SCHEDULES["shapes in turn"]
    expected, got = new_trainer(graphs=False), new_trainer(room=0)
    assert train(expected, schedule) == train(got, schedule)
    assert_same_state(expected, got)
    assert not got.tapes.failures
    assert got.tapes.played > ENOUGH


def test_going_on_from_a_state_gives_the_same_bits() -> None:
    schedule = SCHEDULES["one picture"]
    expected, first, second = new_trainer(graphs=False), new_trainer(), new_trainer()
    losses = train(expected, schedule)
    train(first, schedule[:ENOUGH])
    train(second, schedule[:ENOUGH], 90)
    assert second.tapes.played
    second.members[0].load_state(first.members[0].state())
    assert losses[ENOUGH:] == train(second, schedule[ENOUGH:], ENOUGH)
    assert_same_state(expected, second)


def test_a_graph_reads_the_loss_scale_and_skips_what_overflows() -> None:
    trainer = new_trainer()
    train(trainer, [[[0]]] * ENOUGH)
    scale = trainer.members[0].loss_scale
    scale.value.fill_(3e38)
    before = trainer.members[0].state()
    played = trainer.tapes.played
    train(trainer, [[[0]]], ENOUGH)
    after = trainer.members[0].state()
    assert trainer.tapes.played == played + 1
    assert after["loss_scale"] == before["loss_scale"] / 2
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("lora_"))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("targets", [BOTH, ("unet",)])
def test_nothing_waits_for_the_card(graphs: bool, count: int, targets: tuple[str, ...]) -> None:
    """But the first step with a shape, and the capture. Captions are new at each step."""
    trainer = new_trainer(graphs=graphs, count=count, targets=targets, ema_decay=0.9, scale_weight_norms=0.5)
    schedule = [[[0], [2]]] * ENOUGH
    train(trainer, schedule)
    assert bool(trainer.tapes.played) == graphs
    shown = pictures()
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself a prototype
            torch.cuda.set_sync_debug_mode("error")
        for number in range(ENOUGH, 2 * ENOUGH):
            trainer.step([(step(10 * number + n, [[0], [2]]), shown) for n in range(count)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for member in trainer.members:
        assert all(bool(tensor.isfinite().all()) for tensor in member.state().values())


def test_memory_is_steady_over_fifty_steps() -> None:
    trainer = new_trainer(count=2)
    shapes = [[[0]], [[2]], [[0, 1]]]
    train(trainer, shapes * (ENOUGH + 1))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(17):
        train(trainer, shapes)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
    assert len(trainer.tapes.tapes()) == 3


def test_a_lack_of_memory_lets_go_of_the_graphs_and_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = [[[0]]] * ENOUGH + [[[2]]] + [[[0]]] * 2
    expected, got = new_trainer(graphs=False), new_trainer()
    losses = train(expected, schedule)
    assert train(got, schedule[:ENOUGH]) == losses[:ENOUGH]
    assert got.tapes.tapes()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    fails, backward = [torch.OutOfMemoryError("CUDA out of memory")], torch.autograd.backward

    def failing(*arguments: Any) -> None:
        backward(*arguments)
        if fails:
            raise fails.pop()

    monkeypatch.setattr(torch.autograd, "backward", failing)
    assert train(got, schedule[ENOUGH : ENOUGH + 1], ENOUGH) == [losses[ENOUGH]]
    assert (got.split, got.tapes.tapes()) == (1, [])
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    assert train(got, schedule[ENOUGH + 1 :], ENOUGH + 1) == losses[ENOUGH + 1 :]
    assert_same_state(expected, got)
    assert len(got.tapes.tapes()) == 1, "captured anew, once"


def test_what_cuda_refuses_to_capture_is_done_without() -> None:
    warnings: list[str] = []
    capture = Cuda(CUDA)
    pool = tuple(capture._pool)
    graphs = Graphs(capture, True, 0, warn=warnings.append)
    for number in range(2 * ENOUGH):
        x = torch.arange(4.0) + number
        (y,) = graphs.run("key", [x], lambda x: (x * x.sum().item(),), [])
        assert y.cpu().tolist() == (x * x.sum()).tolist()
    assert (graphs.played, len(warnings)) == (0, 1)
    torch.cuda.empty_cache()  # which raises where the allocator takes a capture for unfinished
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    assert pool not in [tuple(segment["segment_pool_id"]) for segment in segments], "what failed holds nothing"
    ballast = torch.ones(2**26, device=CUDA)
    assert float(ballast[:1000].sum()) == 1000.0
    del ballast
    torch.cuda.empty_cache()
