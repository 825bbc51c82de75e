"""LoRAs that are trained together against the same LoRAs trained one after the other."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.errors import InputError, Interrupted, TrainingDiverged
from lorac.graph.nodes import Input, Node
from lorac.kinds import train
from lorac.sd.clip import TextConfig
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.safetensors import serialise, tensors_of
from lorac.sd.unet import UNetConfig
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Slice, Step, encode
from lorac.train.step import Member, Trainer, Turn
from lorac.train.switches import Switches
from lorac.train.text_states import TextStates
from tests.one_item import of_blobs
from tests.small import base

UNET = UNetConfig(width=16, context=16, heads=2, groups=4)
TEXT = TextConfig(width=16, layers=12, heads=2, inner=32, vocabulary=49408)
TOKENS = 75


@dataclass(frozen=True)
class Recipe:
    """What a LoRA of a gang has for itself."""

    rank: int
    alpha: float = 4.0
    rate: float = 1e-3
    steps: int = 50
    batch: int = 1
    sizes: Sequence[tuple[int, int]] = ((8, 8),)
    seed: int = 0
    links: int = 1
    accumulation: int = 1
    train: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latents(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(100 + self.seed)
        return [torch.randn(4, *self.sizes[i % len(self.sizes)], generator=generator) for i in range(4)]

    def schedule(self) -> list[Step]:
        generator = torch.Generator().manual_seed(self.seed)

        def number(high: int) -> int:
            return int(torch.randint(0, high, (1,), generator=generator))

        def batch() -> list[Sample]:
            kind = number(len(self.sizes))
            items = [i for i in range(4) if i % len(self.sizes) == kind]
            return [
                Sample(items[number(len(items))], number(1000), number(2**40), 1.0, [number(49000)] * number(70))
                for _ in range(self.batch)
            ]

        return [
            Step(i, self.rate / 2, self.rate, [batch() for _ in range(self.accumulation)]) for i in range(self.steps)
        ]

    def slices(self) -> list[Slice]:
        steps, size = self.schedule(), -(-self.steps // self.links)
        return [Slice.of(steps[i : i + size], i, TOKENS) for i in range(0, self.steps, size)]

    @property
    def params(self) -> dict[str, Any]:
        return {
            "network": {"dim": self.rank, "alpha": self.alpha},
            "train": {"latents": "mean", "seed": self.seed, **self.train},
            "loss": dict(self.loss),
            "prediction": {},
            "targets": ["text_encoder", "unet"],
            "clip_skip": 2,
        }


class Bench:
    """Works without an engine: blobs are named by numbers, outputs are read back into them."""

    def __init__(self, folder: Path) -> None:
        unet, text = base(0, UNET, TEXT)
        self.folder = folder
        self.blobs: dict[bytes, bytes] = {
            b"unet": serialise(unet.state_dict(), {"lorac.config": json.dumps({"heads": 2, "groups": 4})}),
            b"text": serialise(text.state_dict(), {"lorac.config": json.dumps({"heads": 2})}),
        }

    def work(self, number: int, recipe: Recipe, link: int, made: Made | None, **more: Any) -> Work:
        name = f"{number}-{link}"
        for i, latent in enumerate(recipe.latents):
            self.blobs[b"latent %d %d" % (number, i)] = serialise({"mean": latent, "logvar": latent}, {})
        self.blobs[name.encode()] = encode(recipe.slices()[link])
        inputs = {"slice": name.encode()}
        for output, value in (made.outputs if made else {}).items():
            inputs[f"previous.{output}"] = key = f"{name} {output}".encode()
            self.blobs[key] = value if isinstance(value, bytes) else value.read_bytes()
        return of_blobs(
            self.blobs,
            params=recipe.params,
            items=[Item(link, name, {}, inputs)],
            total=recipe.links,
            shared={"unet": b"unet", "text": b"text"},
            columns={"latent.0": [b"latent %d %d" % (number, i) for i in range(4)]},
            scratch=self.folder / name,
            **more,
        )

    def alone(self, recipe: Recipe) -> dict[str, Tensor]:
        session: dict[str, Any] = {}
        made = None
        for link in range(recipe.links):
            (found,) = train.run(self.work(99, recipe, link, made, session=session))
            assert isinstance(found, Made)
            made = found
        assert made is not None
        return state(made)

    def together(
        self, *recipes: Recipe, more: Callable[[int], dict[str, Any]] = lambda number: {}
    ) -> list[dict[str, Tensor] | BaseException]:
        """What each ends with."""
        ends: dict[int, Made | BaseException] = {}

        def following(numbers: Sequence[int]) -> Iterator[Work | None]:
            for number in numbers:
                made = ends[number]
                assert isinstance(made, Made)
                link = made.index + 1
                recipe = recipes[number]
                yield self.work(number, recipe, link, made, **more(number)) if link < recipe.links else None

        works = [self.work(number, recipe, 0, None, **more(number)) for number, recipe in enumerate(recipes)]
        keys = {train.gang_key(work) for work in works}
        assert len(keys) == 1 or len({recipe.sizes for recipe in recipes}) > 1
        for number, made in train.run_gang(works, lambda numbers: list(following(numbers))):
            assert not isinstance(made, Failed)
            ends[number] = made
        return [end if isinstance(end := ends[i], BaseException) else state(end) for i in range(len(recipes))]


def state(made: Made) -> dict[str, Tensor]:
    files = [value for name, value in made.outputs.items() if name != "losses"]
    return {name: tensor for file in files for name, tensor in tensors_of(file).items()}


def distance(ours: Mapping[str, Tensor] | BaseException, theirs: Mapping[str, Tensor]) -> float:
    """Between two LoRAs, relative to how far the second is from its start."""
    assert not isinstance(ours, BaseException), ours
    assert ours.keys() == theirs.keys()
    up = [name for name in theirs if name.startswith("lora_") and "lora_up" in name]
    down = [name for name in theirs if name.startswith("lora_") and "lora_down" in name]
    changes = [
        torch.linalg.vector_norm(torch.cat([(ours[n] - theirs[n]).flatten() for n in names])) for names in (up, down)
    ]
    whole = [torch.linalg.vector_norm(torch.cat([theirs[n].flatten() for n in names])) for names in (up, down)]
    return max(float(change / size) for change, size in zip(changes, whole, strict=True))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


RECIPES = [
    Recipe(8),
    Recipe(1, 1.0, 2e-3, seed=1, links=3),
    Recipe(96, 48.0, 5e-4, seed=2, steps=35, links=2),
    Recipe(4, seed=3, train={"optimizer": "adafactor"}, loss={"min_snr_gamma": 5.0}),
]


def test_a_lora_of_a_gang_is_the_one_that_is_trained_alone(bench: Bench) -> None:
    """Of another rank, alpha, learning rate, optimiser, length and data set than the others."""
    for recipe, ours in zip(RECIPES, bench.together(*RECIPES), strict=True):
        assert distance(ours, bench.alone(recipe)) <= 1e-4, recipe


def test_batches_of_other_sizes_and_numbers_take_passes_of_their_own(bench: Bench) -> None:
    recipes = [
        Recipe(4, steps=4, sizes=((8, 8), (4, 8))),
        Recipe(2, steps=4, seed=5, sizes=((8, 8), (4, 8)), batch=2, train={"ema_decay": 0.9}),
        Recipe(8, steps=4, seed=2, sizes=((8, 8), (4, 8)), accumulation=2, loss={"loss_type": "huber"}),
    ]
    for recipe, ours in zip(recipes, bench.together(*recipes), strict=True):
        assert distance(ours, bench.alone(recipe)) <= 1e-4, recipe


@pytest.mark.parametrize("links", [1, 2])
def test_one_that_diverges_leaves_the_others_as_they_are(bench: Bench, links: int) -> None:
    calm = [Recipe(4, steps=8, links=links), Recipe(8, steps=8, seed=2, links=links)]
    wild = Recipe(4, rate=1e3, steps=8, seed=1, links=links, train={"max_grad_norm": 0.0})
    first, error, second = bench.together(calm[0], wild, calm[1])
    assert isinstance(error, TrainingDiverged) and "learning rate 1000" in str(error)
    for recipe, ours in ((calm[0], first), (calm[1], second)):
        assert distance(ours, bench.alone(recipe)) <= 1e-4


def test_settings_that_are_refused_cost_only_their_own_lora(bench: Bench) -> None:
    bad = Recipe(4, steps=2, seed=1, train={"optimizer": "prodigy", "optimizer_args": {"d0": -1.0}})
    good = Recipe(2, steps=2)
    alone = bench.alone(good)
    ours, error = bench.together(good, bad)
    assert isinstance(error, InputError)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in ours.items())  # type: ignore[union-attr]


def test_an_interrupted_gang_goes_on_from_its_snapshots(bench: Bench) -> None:
    recipes = [Recipe(4, steps=9), Recipe(2, steps=6, seed=1), Recipe(8, steps=9, seed=2)]
    whole = bench.together(*recipes)
    kept: dict[int, Path] = {}
    for stop in (2, 5, 100):
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
            assert set(kept) == {0, 1, 2} and stop < 100
    for ours, theirs in zip(ends, whole, strict=True):
        assert not isinstance(theirs, BaseException)
        assert distance(ours, theirs) <= 1e-5


def step_of(members: Sequence[tuple[int, Recipe]], split: int = 1, switches: Switches | None = None) -> list[Member]:
    """The members of a trainer after three steps."""
    unet, text = base(0, UNET, TEXT)
    made = [Member(LoRANetwork(unet, text, NetworkSettings(rank, 2.0), seed=rank)) for rank, _ in members]
    trainer = Trainer(unet, text, made, clip_skip=2, max_token_length=TOKENS, split=split, switches=switches)
    for index in range(3):
        turns: list[Turn | None] = [(recipe.schedule()[index], Pictures(recipe.latents)) for _, recipe in members]
        trainer.step(turns)
    return made


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_in_several_passes_gives_the_same_step(count: int) -> None:
    members = [(4, Recipe(4, steps=3, batch=3)), (2, Recipe(2, steps=3, seed=1, batch=5))][:count]
    whole, cut = step_of(members), step_of(members, split=2)
    for one, other in zip(whole, cut, strict=True):
        assert distance(other.state(), one.state()) <= 1e-4


def test_text_states_are_kept_without_a_trace_in_the_result() -> None:
    unet_states = []
    for kept in (True, False):
        unet, text = base(0, UNET, TEXT)
        member = Member(LoRANetwork(unet, text, NetworkSettings(4, 2.0), ["unet"], seed=1), trained=["unet"])
        switches = Switches(text_states=kept)
        trainer = Trainer(unet, text, [member], clip_skip=2, max_token_length=TOKENS, switches=switches)
        recipe, calls = Recipe(4, steps=3), list[int]()
        text.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for index in (0, 1, 0, 1, 2):
            trainer.step([(recipe.schedule()[index], Pictures(recipe.latents))])
        unet_states.append(member.state())
        assert len(calls) == (3 if kept else 5)
    assert all(torch.equal(tensor, unet_states[1][name]) for name, tensor in unet_states[0].items())


def test_text_states_stay_within_their_limit() -> None:
    _, text = base(0, UNET, TEXT)
    states = TextStates(text, 2, limit=2 * 77 * 16 * 4)
    ids = torch.randint(0, 49000, (5, 1, 77))
    for _ in range(2):
        torch.testing.assert_close(states.of(ids, torch.device("cpu"), torch.float32), text(ids, 2))
    assert len(states._kept) == 2


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
