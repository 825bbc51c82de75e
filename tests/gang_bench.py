"""The kind `train` without an engine: LoRAs trained together, or one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.kinds import train
from lorac.sd.clip import TextConfig
from lorac.sd.safetensors import serialise, tensors_of
from lorac.sd.unet import UNetConfig
from lorac.train.slices import Sample, Slice, Step, encode
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
        for number, made in train.run_gang(works, lambda numbers: list(following(numbers))):
            assert not isinstance(made, Failed)
            ends[number] = made
        return [end if isinstance(end := ends[i], BaseException) else state(end) for i in range(len(recipes))]


def state(made: Made) -> dict[str, Tensor]:
    files = [value for name, value in made.outputs.items() if name != "losses"]
    return {name: tensor for file in files for name, tensor in tensors_of(file).items()}


def distance(ours: Mapping[str, Tensor] | BaseException, theirs: Mapping[str, Tensor]) -> float:
    """Between two LoRAs: the largest relative difference of what a training has made from nothing, the up factors and
    the averages of both factors' gradients. (Down factors begin at random numbers, beside which little changes.)"""
    assert not isinstance(ours, BaseException), ours
    assert ours.keys() == theirs.keys()

    def difference(names: list[str]) -> float:
        mine, its = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (ours, theirs))
        return float(torch.linalg.vector_norm(mine - its) / torch.linalg.vector_norm(its))

    parts = [("lora_", "lora_up"), ("exp_avg/", "lora_up"), ("exp_avg/", "lora_down")]
    groups = [[name for name in theirs if name.startswith(start) and part in name] for start, part in parts]
    assert groups[0]
    return max(difference(names) for names in groups if names)  # not every optimiser has averages
