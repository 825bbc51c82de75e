"""What goes wrong for one LoRA of a gang costs the others nothing; what goes wrong for all is survived."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.engine.protocol import Made
from lorac.errors import InputError, Interrupted, StoreError, TrainingDiverged
from lorac.kinds import crew, train, training
from lorac.sd.safetensors import tensors_of
from lorac.train import replay
from lorac.train.step import Trainer, Turn
from lorac.train.tape import Tapes
from tests.gang_bench import Bench, Recipe, distance, state

WILD = Recipe(4, rate=1e3, steps=6, seed=1, train={"max_grad_norm": 0.0})
"""Diverges."""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Without tapes: a few steps take less time than recording one."""
    monkeypatch.setattr(replay, "Tapes", lambda helper, enabled, **more: Tapes(helper, False, **more))
    return Bench(tmp_path)


def test_one_that_diverges_leaves_the_others_as_they_are(bench: Bench) -> None:
    calm = [Recipe(4, steps=6), Recipe(8, steps=6, seed=2, links=2)]
    steps = [0, 0, 0]

    def more(number: int) -> dict[str, Any]:
        def progress(done: float, total: float, note: str) -> None:
            steps[number] += 1

        return {"progress": progress}

    first, error, second = bench.together(calm[0], WILD, calm[1], more=more)
    assert steps[0] == steps[2] == 6 and steps[1] > 0, "who goes on begins nothing again"
    assert isinstance(error, TrainingDiverged) and "learning rate 1000" in str(error)
    for recipe, ours in ((calm[0], first), (calm[1], second)):
        assert distance(ours, bench.alone(recipe)) <= 1e-4


def test_who_left_does_not_hold_the_base_that_it_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is kept until the build ends."""
    made, older = list[weakref.ref[Trainer]](), list[int]()
    plain = Trainer.__init__

    def counted(self: Trainer, *arguments: Any, **settings: Any) -> None:
        older.append(sum(trainer() is not None for trainer in made))
        made.append(weakref.ref(self))
        plain(self, *arguments, **settings)

    monkeypatch.setattr(Trainer, "__init__", counted)
    _, error = bench.together(Recipe(4, steps=6), WILD)
    assert isinstance(error, TrainingDiverged) and older == [0, 0]


def test_settings_that_are_refused_cost_only_their_own_lora(bench: Bench) -> None:
    bad = Recipe(4, steps=2, seed=1, train={"optimizer": "prodigy", "optimizer_args": {"d0": -1.0}})
    good = Recipe(2, steps=2)
    alone = bench.alone(good)
    ours, error = bench.together(good, bad)
    assert isinstance(error, InputError)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in ours.items())  # type: ignore[union-attr]


def test_an_interrupted_gang_goes_on_from_its_snapshots(bench: Bench) -> None:
    recipes = [Recipe(4, steps=7), Recipe(2, steps=5, seed=1)]
    whole = bench.together(*recipes)
    kept: dict[int, Path] = {}
    for stop in (2, 100):
        cancelled = threading.Event()

        def more(number: int, stop: int = stop, cancelled: threading.Event = cancelled) -> dict[str, Any]:
            def keep(name: str, write: Any) -> None:
                kept[number] = bench.folder / f"{name} {number}"
                write(kept[number])

            def progress(done: float, total: float, note: str) -> None:
                if done >= stop:
                    cancelled.set()

            return {"keep": keep, "kept": lambda name: kept.get(number), "cancelled": cancelled, "progress": progress}

        try:
            ends = bench.together(*recipes, more=more)
        except Interrupted:
            assert set(kept) == {0, 1} and stop < 100
    for ours, theirs in zip(ends, whole, strict=True):
        assert not isinstance(theirs, BaseException)
        assert distance(ours, theirs) <= 1e-5


def test_ctrl_c_as_one_leaves_keeps_the_others_and_loads_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Recipe(4, steps=2), Recipe(2, steps=6, seed=1)]
    whole = bench.alone(recipes[1])
    cancelled, kept, loaded = threading.Event(), dict[int, Path](), list[bool]()
    load_base = train.load_base

    def load(*given: Any) -> Any:
        loaded.append(cancelled.is_set())
        return load_base(*given)

    def more(number: int) -> dict[str, Any]:
        def keep(name: str, write: Any) -> None:
            kept[number] = bench.folder / f"{name} {number}"
            write(kept[number])

        def progress(done: float, total: float, note: str) -> None:
            if number == 0 and done == 2:
                cancelled.set()

        return {"keep": keep, "cancelled": cancelled, "progress": progress}

    monkeypatch.setattr(crew, "load_base", load)
    with pytest.raises(Interrupted):
        bench.together(*recipes, more=more)
    assert loaded == [False] and kept.keys() == {1}
    (made,) = train.run(bench.work(1, recipes[1], 0, None, kept=lambda name: kept[1]))
    assert isinstance(made, Made)
    assert int(tensors_of(kept[1])["step"]) == 2 and distance(state(made), whole) <= 1e-4


def test_the_seconds_of_a_lora_are_those_in_which_it_trains(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two leaves, and the other waits a moment for a base."""
    seconds, load_base, pause = dict[int, float](), train.load_base, 0.5

    def slow(*given: Any) -> Any:
        time.sleep(pause)
        return load_base(*given)

    def more(number: int) -> dict[str, Any]:
        return {"measure": lambda measures: seconds.update({number: measures["seconds"]})}

    monkeypatch.setattr(crew, "load_base", slow)
    started = time.perf_counter()
    bench.together(Recipe(4, steps=1), Recipe(2, steps=2, seed=1), more=more)
    assert 0 < seconds[0] < seconds[1] < time.perf_counter() - started - 2 * pause


@pytest.mark.parametrize("when", ["snapshot", "end"])
def test_a_disk_that_refuses_one(bench: Bench, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Recipe(4, steps=4), Recipe(2, steps=4, seed=1)]
    if when == "end":
        (bench.folder / "1-0").write_text("no folder")
    else:
        monkeypatch.setattr(training, "SNAPSHOT_SECONDS", 0.0)

    def more(number: int) -> dict[str, Any]:
        left = [2]

        def keep(name: str, write: Any) -> None:
            left[0] -= 1
            if number == 1 and left[0] < 0:
                raise StoreError("the disk is gone")

        return {"keep": keep}

    ours, error = bench.together(*recipes, more=more)
    assert isinstance(error, StoreError)
    assert distance(ours, bench.alone(recipes[0])) <= 1e-4


def test_a_disk_that_refuses_one_snapshot_at_ctrl_c(bench: Bench) -> None:
    cancelled, kept = threading.Event(), set[int]()

    def more(number: int) -> dict[str, Any]:
        def keep(name: str, write: Any) -> None:
            if number == 0:
                raise StoreError("the disk is gone")
            kept.add(number)

        return {"keep": keep, "cancelled": cancelled, "progress": lambda *_: cancelled.set()}

    with pytest.raises(Interrupted):
        bench.together(Recipe(4, steps=4), Recipe(2, steps=4, seed=1), more=more)
    assert kept == {1}


@pytest.mark.parametrize("fits", [2, 0])
def test_a_lack_of_memory_makes_the_gang_smaller(bench: Bench, fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a step, after one member has been updated."""
    recipes = [Recipe(rank, steps=3, seed=rank, links=links) for rank, links in ((4, 1), (2, 3), (8, 1))]
    alone = [bench.alone(recipe) for recipe in recipes] if fits == 2 else []
    warnings, steps, plain = list[str](), list[int](), Trainer.step

    def failing(self: Trainer, turns: Sequence[Turn | None]) -> list[Tensor | None]:
        steps.append(len(self.members))
        if len(self.members) > fits and len(steps) > 1:
            plain(self, turns)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, turns)

    monkeypatch.setattr(Trainer, "step", failing)
    ends = bench.together(*recipes, more=lambda number: {"warn": warnings.append})
    assert "2 at a time" in warnings[0] and len(warnings) == (1 if fits == 2 else 2)
    assert steps[0] == 3 and max(steps[2:]) == 2
    for ours, expected in zip(ends, alone, strict=False):
        assert distance(ours, expected) <= 1e-4
    for end in ends:
        assert isinstance(end, InputError) is (fits == 0), end


@pytest.mark.parametrize(("place", "told"), [("load_base", "was loaded"), ("step", "in a training step, with one")])
def test_a_lack_of_memory_is_told_with_its_place(
    bench: Bench, place: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if place == "step":
        monkeypatch.setattr(Trainer, "step", failing)
    else:
        for module in (crew, train):
            monkeypatch.setattr(module, place, failing)
    recipes = [Recipe(4, steps=2), Recipe(2, steps=2, seed=1)]
    ends = bench.together(*recipes)
    with pytest.raises(InputError) as alone:
        bench.alone(recipes[0])
    assert all(isinstance(end, InputError) and told in str(end) for end in (*ends, alone.value))
