"""Peaks of memory of one training step: predicted, and true, of the real `Trainer` at SD1.5's sizes.

The truth is found without numbers (`live.py`), in two forms: as on a card, with a float16 base on torch's "meta"
device, and as on a CPU, in float32. `on_cpu` and `on_cuda` find it on real tensors, by the allocator's own count.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from lorac.kernels import gate

from benchmarks.live import Live, as_on_a_card
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.unet import UNet, UNetConfig
from lorac.train.member import Member
from lorac.train.memory.blas import workspace, workspaces
from lorac.train.memory.predict import predict
from lorac.train.memory.run import TAPES, Plan, Run
from lorac.train.memory.shapes import Sizes, ranks
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches

BOTH, UNET = ("unet", "text_encoder"), ("unet",)
Base = tuple[UNet, TextEncoder]


@dataclass(frozen=True)
class Setting:
    """Of which a trainer is made. half: a float16 base, as on a card; away, split: see `Plan`; chunks: of a caption;
    kernels: whether Triton's run; room: the plan's `tapes`."""

    rank: int = 128
    targets: tuple[str, ...] = BOTH
    level: Recompute = Recompute.ELEMENTWISE
    gang: int = 1
    half: bool = True
    away: bool = False
    chunks: int = 2
    tape: bool = True
    split: int = 1
    kernels: bool = False
    room: int = TAPES

    @property
    def text(self) -> bool:
        return "text_encoder" in self.targets

    def run(self, size: Size, sizes: Sizes, cuda: bool) -> Run:
        network = ranks(NetworkSettings(self.rank, float(self.rank)).adapters(self.targets))
        given = sizes, (network,) * self.gang, size.height, size.width, size.batch, self.chunks
        return Run(*given, cuda=cuda, kernels=self.kernels)


class Size(NamedTuple):
    """Of a step: pixels, and samples of each LoRA."""

    height: int
    width: int
    batch: int


@dataclass(frozen=True)
class Point:
    """A step, and the bytes of it."""

    setting: Setting
    size: Size
    predicted: int
    true: int

    @property
    def error(self) -> float:
        return self.predicted / self.true - 1

    def facts(self) -> dict[str, Any]:
        s = self.setting
        what = {**self.size._asdict(), "rank": s.rank, "gang": s.gang, "text": s.text, "chunks": s.chunks}
        how = {"recompute": s.level.name.lower(), "away": s.away, "split": s.split}
        how |= {"predicted": self.predicted, "true": self.true}
        return {**what, **how, "error": round(self.error, 4)}


def models(unet: UNetConfig, text: TextConfig, dtype: torch.dtype = torch.float32) -> Base:
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


def trainer_of(base: Base, setting: Setting) -> Trainer:
    """As a build makes one."""
    settings = NetworkSettings(setting.rank, float(setting.rank))
    networks = [LoRANetwork(*base, settings, setting.targets, seed=i) for i in range(setting.gang)]
    return Trainer(
        *base,
        [Member(network, trained=setting.targets) for network in networks],
        clip_skip=2,
        max_token_length=75 * setting.chunks,
        switches=Switches(recompute=setting.level, beside=False, tape=setting.tape),
        split=setting.split,
        tapes=setting.room,
    )


def step(trainer: Trainer, size: Size, index: int) -> None:
    """One step of every member. Its caption has not been seen before."""
    samples = [Sample(0, 37, index, 1.0, list(range(300 + index, 340 + index)))] * size.batch
    turn = Step(index, 1e-4, 1e-4, [samples]), Pictures([torch.zeros(4, size.height // 8, size.width // 8)])
    trainer.step([turn] * len(trainer.members))


def measure(
    setting: Setting, steps: Sequence[Size], unet: UNetConfig | None = None, text: TextConfig | None = None
) -> Iterator[Point]:
    """Peaks of steps without numbers beside those that are predicted: without what libraries take for themselves, and
    without the states of captions, of which there are few here."""
    if not setting.half:  # a layer on a CPU holds its weights in a form for each size that it has seen
        for size in steps:
            yield Point(setting, size, *_on_cpu(setting, size, unet or UNetConfig(), text or TextConfig()))
        return
    configs = unet or UNetConfig(), text or TextConfig()
    with as_on_a_card(setting.kernels), Live("meta") as live:
        with torch.device("meta"):
            base = models(*configs, torch.float16)
        trainer = trainer_of((base[0], TextEncoder(configs[1])) if setting.away else base, setting)
        del base
        step(trainer, Size(64, 64, 1), 0)  # the optimiser's state comes to be
        for index, size in enumerate(sorted(steps), start=1):
            live.restart()
            step(trainer, size, index)
            yield Point(setting, size, predicted(setting, size, *configs, cuda=True), live.peak)


def _on_cpu(setting: Setting, size: Size, unet: UNetConfig, text: TextConfig) -> tuple[int, int]:
    """(predicted, true)"""
    with Live("cpu") as live:
        trainer = trainer_of(models(unet, text), setting)
        step(trainer, size, 0)
        live.restart()
        step(trainer, size, 1)
        return predicted(setting, size, unet, text, cuda=False), live.peak


def on_real_cpu(setting: Setting, size: Size, unet: UNetConfig | None = None, text: TextConfig | None = None) -> int:
    """The highest sum of the CPU allocator's events, from making the models to the end of the second step."""
    activity = torch.profiler.ProfilerActivity.CPU
    gc.collect()  # what earlier trainers have left must not be given back, and counted, meanwhile
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        trainer = trainer_of(models(unet or UNetConfig(), text or TextConfig()), setting)
        for index in range(2):
            step(trainer, size, index)
    now = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def on_cuda(setting: Setting, steps: Sequence[Size]) -> Iterator[Point]:
    """The same as `measure` on a card, from the allocator's own count, which has cuBLAS's workspaces in it."""
    torch._C._cuda_clearCublasWorkspaces()  # those of settings before
    setting = replace(setting, kernels=gate.opens(torch.zeros(1, device="cuda")))
    blas = workspace(torch.cuda.get_device_capability(), os.environ) * workspaces(setting.text, setting.away)
    before = torch.cuda.memory_allocated()
    unet, text = models(UNetConfig(), TextConfig(), torch.float16)
    unet, text = unet.to("cuda"), text.to("cpu", torch.float32) if setting.away else text.to("cuda")
    trainer = trainer_of((unet, text), setting)
    step(trainer, Size(64, 64, 1), 0)
    for index, size in enumerate(sorted(steps), start=1):
        torch.cuda.reset_peak_memory_stats()
        step(trainer, size, index)
        torch.cuda.synchronize()
        expected = predicted(setting, size, UNetConfig(), TextConfig(), cuda=True)
        yield Point(setting, size, expected + blas, torch.cuda.max_memory_allocated() - before)


def predicted(setting: Setting, size: Size, unet: UNetConfig, text: TextConfig, cuda: bool) -> int:
    found = predict(setting.run(size, sizes_of(unet, text), cuda), Plan(setting.split, setting.level, setting.away))
    return found.total - found.context - found.blas - found.captions


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
