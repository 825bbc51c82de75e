"""Tapes: the same bits as without, whatever the steps; a tape is used; what cannot be recorded is done as it is."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorac.sd.clip import TextConfig
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.unet import UNetConfig
from lorac.train.helper import Inline, threads
from lorac.train.objective import Objective, Pictures
from lorac.train.optimiser import Optimisation
from lorac.train.playback import check as check_graphs
from lorac.train.slices import Sample, Step
from lorac.train.step import Member, Trainer
from lorac.train.switches import Switches
from lorac.train.tape import Tape, Tapes
from tests.small import base

RATE = 1e-3
UNET = UNetConfig(width=8, context=16, heads=2, groups=4)
TEXT = TextConfig(width=16, layers=12, heads=2, inner=32, vocabulary=49408)


@pytest.fixture(autouse=True)
def record_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal steps."""
    monkeypatch.setattr("lorac.train.tape.BEFORE", 1)


def new_trainer(
    tape: bool, settings: Optimisation | None = None, targets: tuple[str, ...] = ("text_encoder", "unet")
) -> Trainer:
    unet, text_encoder = base(0, UNET, TEXT)
    lora = LoRANetwork(unet, text_encoder, NetworkSettings(4, 4.0), targets, seed=1)
    member = Member(lora, trained=targets, settings=settings, objective=Objective())
    return Trainer(unet, text_encoder, [member], clip_skip=2, max_token_length=150, switches=Switches(tape=tape))


def new_gang(tape: bool) -> Trainer:
    """Two members of other ranks, one of which clips its gradients."""
    unet, text_encoder = base(0, UNET, TEXT)
    members = []
    for seed, (rank, norm) in enumerate([(4, 1.0), (2, 1e-3)]):
        lora = LoRANetwork(unet, text_encoder, NetworkSettings(rank, 4.0), seed=seed)
        members.append(Member(lora, settings=Optimisation(max_grad_norm=norm)))
    return Trainer(unet, text_encoder, members, clip_skip=2, max_token_length=150, switches=Switches(tape=tape))


def pictures() -> Pictures:
    """Pictures 0 and 1 are of one size, 2 of another with a mask."""
    generator = torch.Generator().manual_seed(3)
    latents = [torch.randn(4, height, 8, generator=generator) for height in (8, 8, 16)]
    return Pictures(latents, masks=[None, None, torch.rand(128, 64, generator=generator)])


def sample(number: int, item: int = 0, tokens: int = 20) -> Sample:
    return Sample(
        item, 97 * number % 1000, 1000 + number, 1.0 - 0.01 * number, list(range(400 + number, 400 + number + tokens))
    )


def step(number: int, batches: list[list[int]]) -> Step:
    """A step with the given pictures; lengths of captions change from step to step, from one chunk to two."""
    rate = RATE / (1 + number)
    return Step(
        number,
        rate / 2,
        rate,
        [[sample(3 * number + i, item, 20 + 15 * number) for i, item in enumerate(batch)] for batch in batches],
    )


TWO_BUCKETS = [[[0]], [[2]]] * 3
CASES = {
    "one picture": ([[[0]]] * 5, None),
    "batch of 2, another optimiser": ([[[0, 1]]] * 3, Optimisation("lion")),
    "accumulating, clipped": ([[[0], [1]]] * 3, Optimisation(max_grad_norm=1e-3, scale_weight_norms=0.05)),
    "two buckets, averaged": (TWO_BUCKETS, Optimisation(ema_decay=0.9)),
}


def train(trainer: Trainer, schedule: list[list[list[int]]], first: int = 0) -> list[Tensor]:
    losses = []
    shown = pictures()
    with threads(1):
        for number, batches in list(enumerate(schedule))[first:]:
            (loss,) = trainer.step([(step(number, batches), shown)])
            assert loss is not None
            losses.append(loss)
    return losses


def check(plain: Trainer, taped: Trainer, schedule: list[list[list[int]]]) -> None:
    assert train(plain, schedule) == train(taped, schedule)
    expected, got = plain.members[0].state(), taped.members[0].state()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert plain.tapes.played == 0
    assert taped.tapes.played > 0
    assert not taped.tapes.failures


@pytest.mark.parametrize("case", CASES)
def test_a_tape_gives_the_same_bits(case: str) -> None:
    schedule, settings = CASES[case]
    check(new_trainer(False, settings), new_trainer(True, settings), schedule)


def test_a_tape_of_the_unet_alone() -> None:
    check(new_trainer(False, None, ("unet",)), new_trainer(True, None, ("unet",)), [[[0]]] * 3)


def test_going_on_from_a_state_gives_the_same_bits() -> None:
    schedule = [[[0]]] * 5
    whole, first, second = new_trainer(True), new_trainer(True), new_trainer(True)
    losses = train(whole, schedule)
    train(first, schedule[:2])
    second.members[0].load_state(first.members[0].state())
    assert losses[2:] == train(second, schedule, 2)
    assert second.tapes.played == 1
    expected, got = whole.members[0].state(), second.members[0].state()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_memory_of_a_tape_is_bounded() -> None:
    taped = new_trainer(True)
    tight = Tapes(Inline(), True, limit=2**20)
    x = torch.ones(2**10, 2**9)
    for _ in range(4):
        (y,) = tight.run("key", [x], lambda x: ((x + 1) * 2,), [])
        assert torch.equal(y, (x + 1) * 2)
    assert tight.played == 0
    assert "1 MB" in tight.failures[0]
    train(taped, [[[0]]] * 2)
    (tape,) = taped.tapes.tapes()
    assert isinstance(tape, Tape)
    assert tape.bytes < 0.6 * tape.taken  # what is not needed any more made room


def double(x: Tensor) -> tuple[Tensor]:
    return ((x + 1) * 2,)


def test_what_cannot_be_recorded_leaves_other_work_its_tapes() -> None:
    tapes = Tapes(Inline(), True, limit=2**20)
    large, small = torch.ones(2**10, 2**9), torch.arange(3.0)
    for _ in range(4):
        for x in (large, small):
            assert torch.equal(tapes.run("key", [x], double, [])[0], double(x)[0])
    assert tapes.played == 2
    assert len(tapes.failures) == 1


def test_all_tapes_together_are_bounded() -> None:
    tapes = Tapes(Inline(), True, held=10 * 2**20)
    for _ in range(3):
        for rows in (500, 501, 502):
            x = torch.ones(rows, 2**10)
            assert torch.equal(tapes.run("key", [x], lambda x: ((double(x)[0] + x).sum(0),), [])[0], 5 * x.sum(0))
    assert 0 < len(tapes.tapes()) < 3
    assert sum(tape.bytes for tape in tapes.tapes()) <= 10 * 2**20
    assert "10 MB" in tapes.failures[0]


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("torch._C.Graph", AttributeError("no graphs")),
        ("torch._C._create_function_from_graph", TypeError("incompatible function arguments")),
        ("torch.jit.optimized_execution", RuntimeError("unknown")),
    ],
)
def test_another_torchs_graphs_are_done_without(monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception) -> None:
    def raises(*_: Any) -> Any:
        raise error

    x = torch.arange(3.0)
    warnings: list[str] = []
    tapes = Tapes(Inline(), True, warn=warnings.append)
    monkeypatch.setattr(broken, raises)
    check_graphs.cache_clear()
    for i in range(4):
        for key in ("one", "another"):
            assert torch.equal(tapes.run(key, [x + i], double, [])[0], double(x + i)[0])
    check_graphs.cache_clear()
    assert tapes.played == 0
    assert len(warnings) == 1
    assert str(error) in warnings[0] and torch.__version__ in warnings[0]


def test_a_tape_of_a_gang_gives_the_same_bits() -> None:
    plain, taped = new_gang(False), new_gang(True)
    shown = pictures()
    for number in range(4):
        steps = [(step(2 * number + n, [[n]]), shown) for n in range(2)]
        with threads(1):
            assert plain.step(steps) == taped.step(steps)
    for expected, got in zip(plain.members, taped.members, strict=True):
        state = got.state()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state().items())
    assert plain.tapes.played == 0
    assert taped.tapes.played > 0
    assert not taped.tapes.failures


def twice(
    work: Any, *inputs: Tensor, parameters: list[nn.Parameter] | None = None
) -> tuple[Tapes, list[tuple[Tensor, ...]]]:
    """Four runs with inputs that change."""
    with ThreadPoolExecutor(1) as helper:
        tapes = Tapes(helper, True)
        results = [
            tapes.run("key", [x + i for x in inputs], lambda *x: work(tapes, *x), parameters or []) for i in range(4)
        ]
    return tapes, results


@pytest.mark.parametrize(
    "work",
    [
        lambda _, x: (x + x.max().item(),),
        lambda _, x: (x * len(x[x > 2]),),
        lambda _, x: (x + torch.rand(3) * 0,),
    ],
)
def test_what_depends_on_values_is_not_recorded(work: Any) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    tapes, results = twice(work, x)
    assert tapes.played == 0
    assert len(tapes.failures) == 1
    for i, (result,) in enumerate(results):
        assert torch.equal(result, work(None, x + i)[0])


@pytest.mark.parametrize(
    "work",
    [
        lambda _, x: (x[torch.tensor([0, 2])] * 3,),
        lambda _, x: (torch.zeros(3).add_(x).mul_(0.3),),
        lambda _, x: (torch.cat([x, x.neg()]).view(2, 3).t().contiguous().cumsum(0),),
        lambda _, x: torch.nn.functional.layer_norm(x[None], (3,)).unbind(),
        lambda _, x: (x.sum() * 0.1 + 1, (x / 3).max(dim=0).values),
        lambda _, x: (torch.where(x > 2, x, torch.full_like(x, 0.7)).double(),),
    ],
)
def test_operations_of_all_kinds_are_played_back(work: Any) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    tapes, results = twice(work, x)
    assert not tapes.failures
    assert tapes.played == 2
    for i, result in enumerate(results):
        for got, expected in zip(result, work(None, x + i), strict=True):
            assert torch.equal(got, expected)


class Busy(Executor):
    """A helper that never begins: the caller does the work where it wants the result, as late as can be."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def test_work_of_the_helper_reads_what_was_there_when_it_was_handed_over() -> None:
    def work(tapes: Tapes, x: Tensor) -> tuple[Tensor, ...]:
        large = torch.stack([x] * 30)

        def product() -> Tensor:
            return (large @ large.t()).sum()

        handed = tapes.submit(product)
        for _ in range(20):  # memory of this must not be the helper's
            x = torch.stack([x] * 30).mean(0) + 1
        return product() if handed.cancel() else handed.result(), x

    x = torch.arange(30.0)
    tapes = Tapes(Busy(), True)
    for i in range(4):
        got = tapes.run("key", [x + i], lambda x: work(tapes, x), [])
        expected = work(Tapes(Inline(), False), x + i)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
    assert tapes.played == 2


def test_what_is_no_operation_of_the_work_is_done_once_in_every_run() -> None:
    count = torch.zeros(())

    def work(tapes: Tapes, x: Tensor) -> tuple[Tensor, ...]:
        def counted() -> None:
            count.add_(1)

        tapes.do(counted)
        return (x + count,)

    tapes, results = twice(work, torch.zeros(3))
    assert tapes.played == 2
    assert [float(result[0]) for (result,) in results] == [1.0, 3.0, 5.0, 7.0]


def test_gradients_of_parameters_are_set_again() -> None:
    parameter = nn.Parameter(torch.ones(3))

    def work(_: Any, x: Tensor) -> tuple[Tensor, ...]:
        loss = (parameter * x).square().sum()
        parameter.grad = None
        torch.autograd.backward(loss)
        return (loss.detach(),)

    x = torch.tensor([1.0, 2.0, 3.0])
    tapes, _ = twice(work, x, parameters=[parameter])
    assert tapes.played == 2
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, 2 * (x + 3).square())


def test_after_an_error_no_track_goes_on() -> None:
    """What the helper would write later would be in memory that the next attempt uses."""
    helper = ThreadPoolExecutor(1)
    tapes = Tapes(helper, True)
    gradient, fails = torch.zeros(4), list[bool]()

    def trouble() -> None:
        if fails:
            raise torch.OutOfMemoryError

    def work(x: Tensor | None) -> tuple[Tensor, ...]:
        assert x is not None

        def piece() -> Tensor:
            tapes.do(lambda: time.sleep(0.2) if fails else None)
            return torch.mul(x, 1.0, out=gradient)

        handed = tapes.submit(piece)
        tapes.do(trouble)
        handed.result()
        return (gradient + 0,)

    for number in range(4):
        tapes.run("key", [torch.full((4,), float(number))], work, [])
    assert tapes.played
    fails.append(True)
    with pytest.raises(torch.OutOfMemoryError):
        tapes.run("key", [torch.full((4,), 100.0)], work, [])
    gradient.zero_()
    helper.submit(int).result()
    assert torch.equal(gradient, torch.zeros(4))
