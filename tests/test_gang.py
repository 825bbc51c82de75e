"""LoRAs that are trained together against the same LoRAs trained one after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorac.graph.nodes import Input, Node
from lorac.kinds import train
from lorac.kinds.gang_size import MOST, fitting
from lorac.kinds.memory import budget_of, described
from lorac.train.memory.choose import choose
from tests.gang_bench import Bench, Recipe, distance


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


RECIPES = [
    Recipe(1, 1.0, 2e-3, seed=1, links=2),
    Recipe(96, 48.0, 5e-4, seed=2),
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
    assert run is not None and budget_of(work) == 2**40 and train.gang_limit(work) == MOST
    assert (run.sizes.width, run.sizes.text, run.height, run.width, run.batch) == (16, 16, 64, 64, 4)
    peaks = [choose(replace(run, networks=run.networks * count), None).chosen for count in (1, 2, 5)]
    totals = [peak.prediction.total for peak in peaks if peak]
    assert totals == sorted(set(totals))
    assert fitting(run, totals[1]) == 2
    assert fitting(run, totals[0] // 4) == 1 and fitting(None, 1) == fitting(run, None) == MOST
