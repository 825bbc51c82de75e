"""What CUDA graphs hold while other passes are done: through the same code, with memory that is only counted.

The capture here holds what torch's pool of graphs would if tensors of a pass were as large as its input.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorac.train import cuda_graphs
from lorac.train.cuda_graphs import BEFORE, Graphs, Outputs, Plain
from tests.test_cuda_graphs import assert_same_state, graphed
from tests.test_tape import new_trainer, train

CPU = torch.device("cpu")
ROWS = (4, 7, 3, 9, 5)
"""Of passes, whose inputs are all different in size."""


class Counted(Plain):
    """Says what was done: ("pass" | "capture", rows), or ("forget", 0)."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.log: list[tuple[str, int]] = []
        self.most = 0
        """Bytes, of graphs and of a pass beside them."""

    def run(self, work: Callable[[], Outputs]) -> Outputs:
        return self._done("pass", work())

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        (y,) = self._done("capture", work())
        self.held = max(self.held, y.nbytes)
        return work

    def forget(self, let_go: Callable[[], None]) -> None:
        let_go()
        self.log.append(("forget", 0))
        self.held = 0

    def _done(self, what: str, outputs: Outputs) -> Outputs:
        (y,) = outputs
        self.log.append((what, len(y)))
        self.most = max(self.most, y.nbytes + (self.held if what == "pass" else 0))
        return outputs

    def rows(self, what: str) -> list[int]:
        return [rows for kind, rows in self.log if kind == what]


def double(x: Tensor) -> Outputs:
    return (x * 2,)


def play(graphs: Graphs, schedule: list[int]) -> None:
    for number, rows in enumerate(schedule):
        x = torch.full((rows,), float(number))
        assert torch.equal(graphs.run("key", [x], double, [])[0], 2 * x)


def shuffled(seed: int, times: int = 40) -> list[int]:
    draw = random.Random(seed)
    return [draw.choice(ROWS) for _ in range(times)]


def test_with_room_each_shape_is_done_once_and_captured_once() -> None:
    counted, schedule = Counted(), shuffled(1)
    play(Graphs(counted, True, room=4 * max(ROWS)), schedule)
    assert sorted(counted.rows("capture")) == sorted(ROWS)
    done = counted.rows("pass")
    assert set(done) == set(ROWS)
    assert all(done.count(rows) == 1 or rows in schedule[:BEFORE] for rows in ROWS)
    assert not counted.rows("forget")


@pytest.mark.parametrize("seed", range(4))
def test_without_room_nothing_is_held_beside_a_pass_and_the_largest_comes_first(seed: int) -> None:
    counted, schedule = Counted(), shuffled(seed)
    graphs = Graphs(counted, True, room=0)
    play(graphs, schedule)
    assert counted.most == 4 * max(ROWS), "as much as the largest shape alone"
    assert len(graphs.tapes()) == len(ROWS)
    assert not graphs.failures
    done = counted.rows("pass")
    assert all(done.count(rows) == 1 or rows in schedule[:BEFORE] for rows in ROWS), "one pass of each, however often"
    since = counted.log[len(counted.log) - 1 - counted.log[::-1].index(("forget", 0)) :]
    captured = [rows for what, rows in since if what == "capture"]
    assert captured[0] == max(ROWS), "the others work in its memory"


def test_with_little_room_graphs_go_only_when_they_hold_more() -> None:
    counted = Counted()
    play(Graphs(counted, True, room=4 * 4), [3, 3, 3, 3, 4, 4, 9, 9, 5])
    assert counted.log == [
        *[("pass", 3)] * 3,
        ("capture", 3),
        ("pass", 4),
        ("capture", 4),
        ("pass", 9),
        ("capture", 9),
        ("forget", 0),
        ("pass", 5),
    ]


@pytest.mark.parametrize(("room", "enough"), [(0, False), (1000, True)])
def test_more_shapes_than_are_told_apart(room: int, enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would drive out the graphs of the others at every pass."""
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    warnings: list[str] = []
    graphs = Graphs(Counted(), True, room, warn=warnings.append)
    play(graphs, [3, 4, 5] * 5)
    assert bool(graphs.tapes()) == enough
    assert len(warnings) == (0 if enough else 1)
    assert enough or "more than 2 shapes" in warnings[0]


def test_what_was_captured_is_gone_before_another_pass() -> None:
    held: list[weakref.ref[object]] = []

    class Watched(Counted):
        def run(self, work: Callable[[], Outputs]) -> Outputs:
            assert [graph() for graph in held] == [None] * len(held)
            return super().run(work)

    graphs = Graphs(Watched(), True, room=0)
    play(graphs, [3] * (BEFORE + 1))
    held += [weakref.ref(graph) for graph in graphs.tapes()]
    assert held
    play(graphs, [4])


def test_several_buckets_without_room_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "BEFORE", 1)

    class Large(Plain):
        """Holds more than there is."""

        def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
            self.held += 2**40
            return super().capture(work)

        def forget(self, let_go: Callable[[], None]) -> None:
            let_go()
            self.held = 0

    schedule = [[[0]], [[0]], [[2]], [[0]], [[0, 1]], [[2]], [[0]], [[0, 1]], [[2]]]
    expected, got = new_trainer(False), graphed(lambda: new_trainer(False), Large(CPU))
    assert train(expected, schedule) == train(got, schedule)
    assert_same_state(expected, got)
    assert got.tapes.played == 6
    assert not got.tapes.failures
