"""LoRAs that are trained together against the same LoRAs trained one after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorac.engine.protocol import Made, Work
from lorac.graph.nodes import Input, Node
from lorac.kinds import train
from lorac.kinds.gang_size import CAUTIOUS, MOST, Cut, cut, fitting
from lorac.kinds.memory import budget_of, described
from lorac.train.memory.choose import choose
from lorac.train.memory.predict import CONTEXT
from tests.gang_bench import Bench, Recipe, distance, state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


RECIPES = [
    Recipe(1, 1.0, 2e-3, steps=24, seed=1, links=2),
    Recipe(96, 48.0, 5e-4, steps=24, seed=2),
]


def test_a_lora_of_a_gang_is_the_one_that_is_trained_alone(bench: Bench) -> None:
    """Of another rank, alpha, learning rate, seed and data set than the other."""
    for recipe, ours in zip(RECIPES, bench.together(*RECIPES), strict=True):
        assert distance(ours, bench.alone(recipe)) <= 1e-4, recipe


def test_batches_of_other_sizes_and_numbers_take_passes_of_their_own(bench: Bench) -> None:
    recipes = [
        Recipe(4, steps=2, sizes=((8, 8), (4, 8)), train={"optimizer": "adafactor"}, loss={"min_snr_gamma": 5.0}),
        Recipe(2, steps=2, seed=5, sizes=((8, 8), (4, 8)), batch=2, train={"ema_decay": 0.9}),
        Recipe(8, steps=2, seed=2, sizes=((8, 8), (4, 8)), accumulation=2, loss={"loss_type": "huber"}),
    ]
    for recipe, ours in zip(recipes, bench.together(*recipes), strict=True):
        # Two steps only: Adam turns the smallest gradients, which are rounding, into steps of the whole rate.
        assert distance(ours, bench.alone(recipe)) <= 1e-3, recipe


def test_what_a_gang_needs_alike() -> None:
    def node(**changes: Any) -> Node:
        params = {**Recipe(4).params, **{k: v for k, v in changes.items() if k != "network"}}
        params["network"] = {**params["network"], **changes.get("network", {})}
        return Node("a:train", "train", params, {"unet": Input(weights, "unet"), "text": Input(weights, "text")})

    weights = Node("a:weights", "weights", {})
    usual = train.gang_group(node())
    assert usual is not None
    assert train.gang_group(node(network={"dim": 64, "alpha": 1.0}, loss={"loss_type": "l1"})) == usual
    assert train.gang_group(node(clip_skip=1)) != usual
    assert train.gang_group(node(targets=["unet"])) != usual
    assert train.gang_group(node(network={"block_dims": [2] * 25})) != usual
    for name, value in (("dropout", 0.1), ("dora", True), ("conv_dim", 4)):
        alone = node(network={name: value})
        assert train.gang_group(alone) is None
        assert train.alone_because(alone.params) == f"network.{name}"


def test_who_gains_from_a_gang(bench: Bench) -> None:
    """Steps of equal shapes, in the same order or all alike, make passes in which every row counts."""

    def key(recipe: Recipe) -> object:
        return train.gang_key(bench.work(0, recipe, 0, None))

    several = ((8, 8), (4, 8))
    assert key(Recipe(4)) == key(Recipe(8, rate=1e-4, seed=3, steps=20))
    assert key(Recipe(4, sizes=several)) == key(Recipe(8, rate=1e-4, sizes=several))
    assert key(Recipe(4)) != key(Recipe(4, sizes=((4, 8),)))
    assert key(Recipe(4)) != key(Recipe(4, batch=2))
    assert key(Recipe(4)) != key(Recipe(4, accumulation=2))
    assert key(Recipe(4, sizes=several)) != key(Recipe(4, sizes=several, seed=1))


def test_how_many_memory_holds(bench: Bench) -> None:
    work = bench.work(0, Recipe(64, batch=4), 0, None, hints={"budget": 2**40})
    run = described([work])
    assert run is not None and budget_of(work) == 2**40 and train.gang_limit([work] * (MOST + 1)) == MOST
    assert (run.sizes.width, run.sizes.text, run.height, run.width, run.batch) == (16, 16, 64, 64, 4)
    peaks = [choose(replace(run, networks=run.networks * count), None).chosen for count in (1, 2, 5)]
    totals = [peak.prediction.total for peak in peaks if peak]
    assert totals == sorted(set(totals))
    runs = [run] * 5
    assert fitting(runs, totals[1]) == 2 and fitting(runs, totals[2]) == 5 and fitting(runs, totals[0] // 4) == 1
    assert fitting(runs, None) == CAUTIOUS
    assert cut(runs, totals[1]) == Cut([2, 2, 1], "memory holds 2 at most")
    assert cut(runs, totals[2]) == Cut([5], "")
    assert cut(runs, totals[0] // 4) == Cut([1] * 5, "memory holds no more")
    assert cut(runs * 2, 2**40) == Cut([5, 5], "8 at most")
    assert cut(runs, None) == Cut([2, 2, 1], "nothing says how much memory is free")


def test_a_gang_is_predicted_by_all_that_are_in_it(bench: Bench) -> None:
    """And not by whoever comes first."""
    small, large = Recipe(2, train={"optimizer": "adafactor"}), Recipe(96, train={"optimizer": "prodigy"})

    def works(*recipes: Recipe, budget: int = 2**40) -> list[Work]:
        return [bench.work(i, recipe, 0, None, hints={"budget": budget}) for i, recipe in enumerate(recipes)]

    def peak(*recipes: Recipe) -> int:
        run = described(works(*recipes))
        assert run is not None
        chosen = choose(run, None).chosen
        assert chosen is not None
        return chosen.prediction.total

    assert peak(small, large) == peak(large, small) > peak(large) > peak(small)
    assert peak(small, large) > peak(replace(large, train=small.train), small)
    three, four = (peak(*[small] * count, large) for count in (2, 3))
    assert train.gang_limit(works(small, small, small, large, budget=(three + four) // 2)) == 3
    assert train.gang_limit(works(small, large, small, small, budget=peak(large, small))) == 2


def test_recorded_steps_take_what_the_budget_leaves(bench: Bench) -> None:
    """No step is recorded where it leaves nothing, some where it leaves a little; the bits are the same."""
    recipe = Recipe(4, steps=12)
    run = described([bench.work(0, recipe, 0, None)])
    assert run is not None
    least = choose(run, None).chosen
    assert least is not None
    found = []
    for room in (0, 64 * 2**20):
        session: dict[str, Any] = {}
        work = bench.work(0, recipe, 0, None, session=session, hints={"budget": least.prediction.total + room})
        (made,) = train.run(work)
        assert isinstance(made, Made)
        tapes = session["trainer"].tapes
        assert (tapes.played > 0) == (room > 0) == (not tapes.failures)
        found.append(state(made))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_a_card_has_free_is_without_what_torch_has_loaded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions have what CUDA takes for itself, and it is taken when torch is asked."""
    work = bench.work(0, Recipe(4, steps=6, batch=2), 0, None)
    assert budget_of(work) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 10**9, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("lorac.kinds.memory._kernels", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert budget_of(work) == 6 * 10**9 + CONTEXT
    run = described([work])
    assert run is not None and run.captions == 12, "as many as samples, as in a plan"
    assert run.blas == 2**25
