"""What the planner knows of a training, and what it may choose."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from lorac.sd.lora_settings import NetworkSettings
from lorac.train.memory.blas import workspace
from lorac.train.memory.shapes import Sizes, ranks
from lorac.train.switches import Recompute

MERGED_LIMIT = 64 * 2**20
"""`lorac.sd.lora`'s: largest size in bytes of the adapted weights for which the merged form is used."""
TEXT_STATES = 64 * 2**20
"""`lorac.train.text_states`'s: most bytes of captions' states that are kept."""

TAPES = 2 * 2**30
"""`lorac.train.tape`'s: the most that recording a step takes, and that recorded steps hold. It is not predicted: with a
budget they get what the prediction leaves of it."""


@dataclass(frozen=True)
class Run:
    """networks: of each LoRA in the gang, rank by module; height, width in pixels of the largest bucket; batch: of one
    LoRA; chunks: of a caption; optimizers: those of the gang, of which the hungriest counts for all; cuda: float16 base
    on a card, else float32 on a CPU; captions: how many different ones there may be, None for any number. `resolution`
    is the recipe's, for remedies. kernels: whether Triton's run. blas: bytes that cuBLAS works in, see `blas.py`."""

    sizes: Sizes
    networks: tuple[Mapping[str, int], ...]
    height: int = 512
    width: int = 512
    batch: int = 1
    chunks: int = 2
    optimizers: frozenset[str] = frozenset({"adamw"})
    ema: bool = False
    cuda: bool = False
    captions: int | None = None
    resolution: int = 512
    kernels: bool = False
    blas: int = 0

    @classmethod
    def of(
        cls,
        sizes: Sizes,
        network: Mapping[str, Any],
        train: Mapping[str, Any],
        targets: Collection[str],
        *,
        size: tuple[int, int],
        batch: int,
        chunks: int,
        captions: int,
        resolution: int,
        cuda: bool,
        capability: tuple[int, int] | None = None,
        kernels: bool | None = None,
    ) -> Run | None:
        """Of one LoRA with these sections of a recipe; None for what cannot be predicted: LoCon, DoRA and dropouts.
        `capability` of the card and whether `kernels` run on it, if that is known; else they do where Triton is."""
        settings = NetworkSettings.of(network, train)
        if settings.dora or settings.dropping or settings.locon:
            return None
        return cls(
            sizes,
            (ranks(settings.adapters(targets)),),
            *size,
            batch=batch,
            chunks=chunks,
            optimizers=frozenset({train.get("optimizer", "adamw")}),
            ema=bool(train.get("ema_decay")),
            cuda=cuda,
            captions=captions,
            resolution=resolution,
            kernels=cuda and (find_spec("triton") is not None if kernels is None else kernels),
            blas=workspace(capability, os.environ, bool(train.get("deterministic"))) if cuda else 0,
        )

    @classmethod
    def together(cls, runs: Sequence[Run]) -> Run:
        """Of the gang of these, which have one base and the same parts."""
        largest = max(runs, key=lambda run: run.height * run.width)
        known = [run.captions for run in runs if run.captions is not None]
        return replace(
            largest,
            networks=tuple(network for run in runs for network in run.networks),
            batch=max(run.batch for run in runs),
            chunks=max(run.chunks for run in runs),
            optimizers=frozenset[str]().union(*(run.optimizers for run in runs)),
            ema=any(run.ema for run in runs),
            captions=sum(known) if len(known) == len(runs) else None,
        )

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """By module: in a gang all factors of a module have the largest rank."""
        return {path: max(network[path] for network in self.networks) for path in self.networks[0]}

    @cached_property
    def text(self) -> bool:
        """Whether the text encoder is trained."""
        return any(path.startswith("text_model.") for path in self.networks[0])

    @property
    def element(self) -> int:
        """Bytes of a number of the base."""
        return 2 if self.cuda else 4

    @cached_property
    def merged(self) -> bool:
        """Whether the base is so small that its LoRAs are merged into it; on a CPU, its steps are recorded too."""
        adapted = sum(outputs * inputs for outputs, inputs in map(self.sizes.module, self.networks[0]))
        return adapted * self.element <= MERGED_LIMIT


@dataclass(frozen=True)
class Plan:
    """split: into how many passes each batch is cut. away: a text encoder that is not trained stays on the CPU, where
    it computes in float32, while the U-Net is on a card. tapes: bytes that recording steps and recorded ones, or CUDA
    graphs while another pass is done, may take beside what is predicted."""

    split: int = 1
    recompute: Recompute = Recompute.ELEMENTWISE
    away: bool = False
    tapes: int = TAPES
