"""Predicted and true peaks of memory of a training step, over a grid of settings.

    python -m benchmarks.memory [--quick] [--real]

The truth is a step of the real `Trainer` at SD1.5's sizes, in float16 as on a card: on tensors without numbers (torch's
"meta" device), whose living bytes are counted operation by operation; with --real also a small base on the CPU, by the
allocator's own count; and on a machine with CUDA `torch.cuda.max_memory_allocated`, less what torch had before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.common import commit, machine, table, versions, write_result
from benchmarks.live import Live, as_on_a_card
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.unet import UNet, UNetConfig
from lorac.train.member import Member
from lorac.train.memory.predict import predict
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes, ranks
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches

CAPTION = list(range(300, 340))
TOKENS, CHUNKS = 150, 2
MODE = FakeTensorMode()
"""One for all: tables that modules keep from step to step belong to it."""

BOTH = ("unet", "text_encoder")


@dataclass(frozen=True)
class Setting:
    """Of which a trainer is made."""

    rank: int = 128
    targets: tuple[str, ...] = BOTH
    level: Recompute = Recompute.ELEMENTWISE
    gang: int = 1
    half: bool = True

    def run(self, resolution: int, batch: int, sizes: Sizes, cuda: bool) -> Run:
        network = ranks(NetworkSettings(self.rank, float(self.rank)).adapters(self.targets))
        return Run(sizes, (network,) * self.gang, resolution, resolution, batch, CHUNKS, cuda=cuda)


@dataclass(frozen=True)
class Point:
    """A step: (setting, resolution, batch), and the bytes of it, predicted and true."""

    setting: Setting
    resolution: int
    batch: int
    predicted: int
    true: int

    @property
    def error(self) -> float:
        return self.predicted / self.true - 1

    def facts(self) -> dict[str, Any]:
        s = self.setting
        what = {"resolution": self.resolution, "batch": self.batch, "rank": s.rank, "text": "text_encoder" in s.targets}
        how = {"recompute": s.level.name.lower(), "gang": s.gang, "predicted": self.predicted, "true": self.true}
        return {**what, **how, "error": round(self.error, 4)}


def grid(quick: bool) -> Iterator[tuple[Setting, list[tuple[int, int]]]]:
    """Settings with the (resolution, batch) of their steps: 120, or 8."""
    if quick:
        yield Setting(), [(256, 1), (512, 1), (512, 4)]
        yield Setting(16, ("unet",), Recompute.TRANSFORMER, 2), [(256, 1), (384, 2)]
        return
    sizes = [(256, 1), (256, 8), (384, 2), (512, 1), (512, 4), (768, 1)]
    for level, targets in product(list(Recompute), (BOTH, ("unet",))):
        yield Setting(level=level, targets=targets), sizes
    for rank in (1, 16, 64, 256):
        yield Setting(rank), sizes
    for gang in (2, 3, 5):
        yield Setting(32, gang=gang), [(256, 1), (384, 1), (512, 1), (512, 2)]
        yield Setting(32, ("unet",), Recompute.TRANSFORMER, gang), [(256, 2), (512, 1), (512, 2), (768, 1)]


def models(unet: UNetConfig, text: TextConfig, dtype: torch.dtype = torch.float32) -> tuple[UNet, TextEncoder]:
    """A frozen base of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        made = UNet(unet), TextEncoder(text)
    finally:
        torch.set_default_dtype(before)
    for model in made:
        model.requires_grad_(False).eval()
    return made


def trainer_of(base: tuple[UNet, TextEncoder], setting: Setting) -> Trainer:
    """As a build makes one."""
    settings = NetworkSettings(setting.rank, float(setting.rank))
    networks = [LoRANetwork(*base, settings, setting.targets, seed=i) for i in range(setting.gang)]
    switches = Switches(recompute=setting.level, beside=False, text_states=False)
    return Trainer(
        *base, [Member(network) for network in networks], clip_skip=2, max_token_length=TOKENS, switches=switches
    )


def step(trainer: Trainer, resolution: int, batch: int, index: int) -> None:
    """One step of every member."""
    side = resolution // 8
    samples = [Sample(0, 37, index, 1.0, CAPTION)] * batch
    turn = Step(index, 1e-4, 1e-4, [samples]), Pictures([torch.zeros(4, side, side)])
    trainer.step([turn] * len(trainer.members))


def measure(
    setting: Setting, steps: Sequence[tuple[int, int]], unet: UNetConfig | None = None, text: TextConfig | None = None
) -> Iterator[Point]:
    """Peaks of steps without numbers beside those that are predicted, without what libraries take for themselves.

    `setting.half`: as on a card; else as on a CPU, which takes ten times as long.
    """
    unet, text = unet or UNetConfig(), text or TextConfig()
    sizes, first, *rest = sizes_of(unet, text), *sorted(steps)
    place = (as_on_a_card(), torch.device("meta")) if setting.half else (nullcontext(), nullcontext())
    with place[0], Live() as live:
        with place[1]:
            base = models(unet, text, torch.float16 if setting.half else torch.float32)
        trainer = trainer_of(base, setting)
        step(trainer, *first, 0)  # the optimiser's state comes to be
        for index, (resolution, batch) in enumerate([first, *rest], start=1):
            live.restart()
            step(trainer, resolution, batch, index)
            yield _point(setting, resolution, batch, sizes, live.peak, cuda=setting.half)


def sizes_of(unet: UNetConfig, text: TextConfig) -> Sizes:
    return Sizes(
        width=unet.width,
        context=unet.context,
        heads=unet.heads,
        text=text.width,
        text_layers=text.layers,
        text_inner=text.inner,
        text_heads=text.heads,
        vocabulary=text.vocabulary,
    )


def _point(setting: Setting, resolution: int, batch: int, sizes: Sizes, true: int, cuda: bool) -> Point:
    prediction = predict(setting.run(resolution, batch, sizes, cuda), Plan(1, setting.level))
    return Point(setting, resolution, batch, prediction.total - prediction.context, true)


def measure_cuda(setting: Setting, steps: Sequence[tuple[int, int]]) -> Iterator[Point]:
    """The same on a card, in float16, from the allocator's own count."""
    before = torch.cuda.memory_allocated()
    base = models(UNetConfig(), TextConfig(), torch.float16)
    trainer = trainer_of((base[0].to("cuda"), base[1].to("cuda")), setting)
    step(trainer, 64, 1, 0)
    for index, (resolution, batch) in enumerate(sorted(steps), start=1):
        torch.cuda.reset_peak_memory_stats()
        step(trainer, resolution, batch, index)
        torch.cuda.synchronize()
        sizes = sizes_of(UNetConfig(), TextConfig())
        yield _point(setting, resolution, batch, sizes, torch.cuda.max_memory_allocated() - before, cuda=True)


def measure_real(setting: Setting, resolution: int, batch: int, unet: UNetConfig, text: TextConfig) -> tuple[int, int]:
    """Bytes that a step takes above what is there before it: (on fake tensors, by the CPU allocator's events)."""
    found = []
    for fake in (True, False):
        with MODE if fake else nullcontext(), Live() if fake else nullcontext() as live:
            trainer = trainer_of(models(unet, text), setting)
            step(trainer, resolution, batch, 0)
            if live is not None:
                before = live.restart()
                step(trainer, resolution, batch, 1)
                found.append(live.peak - before)
            else:
                found.append(_allocated(trainer, resolution, batch))
    return found[0], found[1]


def _allocated(trainer: Trainer, resolution: int, batch: int) -> int:
    """The highest sum of the allocator's events during a step."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        step(trainer, resolution, batch, 1)
    now = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few settings")
    parser.add_argument("--real", action="store_true", help="also a step of a small base on real tensors")
    options = parser.parse_args()
    kinds = {"meta": measure, **({"cuda": measure_cuda} if torch.cuda.is_available() else {})}
    of: dict[str, list[Point]] = {kind: [] for kind in kinds}
    real: dict[str, Any] = {}
    if options.real:
        fake_bytes, real_bytes = measure_real(Setting(16), 256, 2, UNetConfig(64, 64, 4, 8), TextConfig(64, 12, 4, 128))
        real = {"fake_bytes": fake_bytes, "allocator_bytes": real_bytes, "ratio": round(fake_bytes / real_bytes, 4)}
        print(f"a step of a small base: fake {fake_bytes / 1e6:.1f} MB, allocator {real_bytes / 1e6:.1f} MB")
    for setting, steps in grid(options.quick):
        for kind, measured in kinds.items():
            started = time.perf_counter()
            of[kind] += list(measured(setting, steps))
            print(f"{kind}: {len(of[kind])} steps, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if not options.quick:
            _write(of, real)
    points = [point for found in of.values() for point in found]
    print(_table(points))
    print(f"{len(points)} steps; largest error {_worst(points):+.1%}")


def _worst(points: Sequence[Point]) -> float:
    return max((point.error for point in points), key=abs)


def _table(points: Sequence[Point]) -> str:
    rows = []
    for p in points:
        s = p.setting
        what = f"{p.resolution} px, batch {p.batch}, rank {s.rank}, gang {s.gang}"
        text = "trained" if "text_encoder" in s.targets else ""
        figures = [f"{size / 1e6:.0f}" for size in (p.predicted, p.true)]
        rows.append([what, s.level.name.lower(), text, *figures, f"{p.error:+.1%}"])
    return table(["setting", "recompute", "text encoder", "predicted MB", "true MB", "error"], rows)


def _write(of: Mapping[str, Sequence[Point]], real: Mapping[str, Any]) -> None:
    where = {"machine": machine(), "versions": versions(["torch"]), "commit": commit()}
    worst = round(_worst([point for found in of.values() for point in found]), 4)
    figures = {kind: [point.facts() for point in found] for kind, found in of.items()}
    write_result("memory", {**where, "largest_error": worst, "real": real, **figures})


if __name__ == "__main__":
    main()
