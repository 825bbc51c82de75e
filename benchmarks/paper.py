"""How long a training step takes on a card, on paper: from the bytes and the operations of every kernel of it.

    python -m benchmarks.paper [--px 512] [--batch 1] [--count 1] [--top 30]

One step of SD1.5's size as the article trains it (U-Net and text encoder, rank 128, 150 tokens, clip skip 2, AdamW)
runs on tensors without numbers (`launches.py`), float16 with a loss scale. A kernel takes

    launch + max(bytes / bandwidth, operations / rate of their dtype)

in two columns: the limit, where everything runs at its peak, and what is usual. Sources of the figures:

- Peaks: NVIDIA's data sheets; tensor cores of a GeForce 20 run at half their rate where sums are in float32. Of the
  H100 the rate is that of a measured large product. Products of float32 use no tensor cores (lorac leaves TF32 as torch
  has it: off for products).
- Launches: in a CUDA graph a kernel of 2.9 µs comes every 3.4 µs (developer.nvidia.com/blog/cuda-graphs): 0.5 µs is the
  limit. Usual is that with the time in which a kernel fills and empties a card, some 2 µs for the shortest.
- Usual shares are guesses that fit what is published: a copy reaches 80 % of a card's bandwidth. Products and
  convolutions of a step at batch 1 are small: inference with CUDA graphs (stable-fast, SD1.5 at 512 px, two samples:
  104.6/s on an H100) reaches 21 % of the rate in all, and the shares of the H100 are those with which this model gives
  the same (`--check`: 106/s). Slower cards come closer to their peak (RTX 4080: 51.6/s, 85 % of its rate with float32
  sums; RTX 3060 without graphs: 7.8/s, 50 %).

Not in it: what larger caches save (an H100 holds 50 MB, most activations), tiles that do not fill a card, clocks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.common import keep, table
from benchmarks.launches import ATTENTION, Kernel, Launches
from benchmarks.peaks import models
from lorac.sd.clip import TextConfig
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_names import PARTS
from lorac.sd.unet import UNetConfig
from lorac.train.member import Member
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches

HALF, SINGLE = torch.float16, torch.float32
CONVOLUTION = "convolution"


@dataclass(frozen=True)
class Card:
    """Bytes and operations in a second; usual shares of them; seconds of a launch."""

    name: str
    bandwidth: float
    half: float
    single: float
    products: float
    convolutions: float
    attention: float
    moved: float = 0.8
    launch: float = 2e-6

    def limit(self, kernel: Kernel) -> float:
        """Seconds, where everything runs at its peak."""
        return LAUNCH + max(kernel.moved / self.bandwidth, kernel.flops / self._rate(kernel))

    def usual(self, kernel: Kernel) -> float:
        """Seconds, as kernels are."""
        share = {CONVOLUTION: self.convolutions, ATTENTION: self.attention}.get(kernel.kind, self.products)
        moving = kernel.moved / (self.bandwidth * self.moved)
        return self.launch + max(moving, kernel.flops / (self._rate(kernel) * share))

    def _rate(self, kernel: Kernel) -> float:
        return self.single if kernel.dtype == SINGLE else self.half


LAUNCH = 0.5e-6
TURING = Card("RTX 2070 SUPER", 448e9, 36e12, 9.06e12, products=0.65, convolutions=0.55, attention=0.4)
HOPPER = Card("H100", 3.35e12, 790e12, 67e12, products=0.35, convolutions=0.3, attention=0.25)
CARDS = (TURING, HOPPER)


@dataclass(frozen=True)
class Work:
    """What is trained; the defaults are the article's."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    text: TextConfig = field(default_factory=TextConfig)
    px: int = 512
    batch: int = 1
    count: int = 1
    rank: int = 128
    targets: tuple[str, ...] = PARTS
    tokens: int = 150
    recompute: Recompute = Recompute.NOTHING


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="LoRAs trained together")
    parser.add_argument("--top", type=int, default=0, help="print the lines that take longest")
    parser.add_argument("--check", action="store_true", help="a pass of inference, whose speed is published")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    options = parser.parse_args()
    if options.check:
        print(f"two samples without gradients: {1 / sum(map(HOPPER.usual, inference())):.0f}/s on an H100")
        return
    kernels = step(Work(px=options.px, batch=options.batch, count=options.count))
    facts = facts_of(kernels, options.count)
    if options.json:
        print(json.dumps(facts))
        return
    head, rows = ["", "kernels", "MB", "GFLOP"], []
    for kind, row in facts["kinds"].items():
        rows.append([kind, *(f"{row[name]:.0f}" for name in ("kernels", "mb", "gflop")), *_shown(row["ms"])])
    print(table([*head, *(f"{card.name}: {column}" for card in CARDS for column in ("limit", "usual"))], rows))
    for name, row in facts["cards"].items():
        print(f"{name}: at most {row['limit']:.1f} LoRA-steps/s, usually {row['usual']:.1f}")
    if options.top:
        print(table(["line", "kernel", "kernels", "MB", *(card.name for card in CARDS)], longest(kernels, options.top)))
    keep("paper", f"full-{options.px}-b{options.batch}-n{options.count}", facts, ["torch"])


def step(work: Work) -> list[Kernel]:
    """The kernels of one step that is like those before it, the update included."""
    with torch.device("meta"):
        base = models(work.unet, work.text, HALF)
    weights = [weight for model in base for weight in model.parameters()]
    with Launches(noting=False):
        settings = NetworkSettings(work.rank, float(work.rank))
        networks = [LoRANetwork(*base, settings, work.targets, seed, merged=False) for seed in range(work.count)]
        trainer = Trainer(
            *base,
            [Member(network, trained=work.targets) for network in networks],
            clip_skip=2,
            max_token_length=work.tokens,
            switches=Switches(recompute=work.recompute),
        )
        _turn(trainer, work)  # the optimiser's state comes to be
    with Launches(weights) as launches:
        _turn(trainer, work)
    return launches.kernels


def _turn(trainer: Trainer, work: Work) -> None:
    samples = [Sample(0, 37, 0, 1.0, list(range(300, 340)))] * work.batch
    turn = Step(0, 1e-4, 1e-4, [samples]), Pictures([torch.zeros(4, work.px // 8, work.px // 8)])
    trainer.step([turn] * work.count)


def inference(work: Work | None = None) -> list[Kernel]:
    """The kernels of the U-Net for two samples, as guidance wants it."""
    work = work or Work()
    with torch.device("meta"):
        unet, _ = models(work.unet, work.text, HALF)
        x_BCHW = torch.empty(2, 4, work.px // 8, work.px // 8, dtype=HALF)
        t_B, states_BLD = torch.empty(2, dtype=torch.long), torch.empty(2, 77, work.unet.context, dtype=HALF)
    with Launches(list(unet.parameters())) as launches, torch.no_grad():
        unet(x_BCHW, t_B, states_BLD)
    return launches.kernels


def facts_of(kernels: Sequence[Kernel], count: int) -> dict[str, Any]:
    """What the JSON says: of each kind and of all of them, and the steps of all LoRAs in a second."""
    kinds: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        kinds.setdefault(kernel.kind, []).append(kernel)
    rows = {kind: _row(some) for kind, some in kinds.items()}
    ordered = sorted(rows, key=lambda kind: -rows[kind]["ms"][TURING.name]["usual"])
    whole = _row(kernels)
    speed = {
        name: {column: round(count * 1e3 / ms, 2) for column, ms in columns.items()}
        for name, columns in whole["ms"].items()
    }
    return {"kinds": {**{kind: rows[kind] for kind in ordered}, "all": whole}, "cards": speed}


def _row(kernels: Iterable[Kernel]) -> dict[str, Any]:
    some = list(kernels)
    return {
        "kernels": len(some),
        "mb": round(sum(kernel.moved for kernel in some) / 1e6, 1),
        "gflop": round(sum(kernel.flops for kernel in some) / 1e9, 1),
        "ms": {card.name: _milliseconds(card, some) for card in CARDS},
    }


def _milliseconds(card: Card, kernels: Sequence[Kernel]) -> dict[str, float]:
    return {
        "limit": round(sum(map(card.limit, kernels)) * 1e3, 3),
        "usual": round(sum(map(card.usual, kernels)) * 1e3, 3),
    }


def _shown(ms: dict[str, dict[str, float]]) -> list[str]:
    return [f"{columns[column]:.2f}" for columns in ms.values() for column in ("limit", "usual")]


def longest(kernels: Iterable[Kernel], count: int) -> list[list[str]]:
    """The lines of lorac that take longest: kernel, number, MB, usual ms on each card."""
    lines: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        lines.setdefault((kernel.place, f"{kernel.name} {str(kernel.dtype).removeprefix('torch.')}"), []).append(kernel)
    rows = {line: _row(some) for line, some in lines.items()}
    ordered = sorted(rows.items(), key=lambda pair: -pair[1]["ms"][TURING.name]["usual"])
    return [
        [*line, str(row["kernels"]), f"{row['mb']:.0f}", *(f"{row['ms'][card.name]['usual']:.2f}" for card in CARDS)]
        for line, row in ordered[:count]
    ]


if __name__ == "__main__":
    main()
