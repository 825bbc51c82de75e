"""What the memory planner has to know of trainings, and the plan by which they run.

All of it is read from headers and schedules, before a base is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lorac.digest import Digest
from lorac.engine.protocol import Work
from lorac.errors import InputError, Problem
from lorac.sd.config import FACTOR
from lorac.sd.lora_settings import NetworkSettings
from lorac.sd.safetensors import Header, header_of, read_header
from lorac.train.memory.budget import shown
from lorac.train.memory.choose import choose, remedies
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes, ranks
from lorac.train.slices import decode


def planned(works: Sequence[Work]) -> Plan | None:
    """The quickest plan that fits, for all LoRAs of a gang; None where nothing limits memory or nothing is known.

    Raises InputError where no plan fits.
    """
    budget, run = budget_of(works[0]), described(works)
    if budget is None or run is None:
        return None
    choice = choose(run, budget)
    if choice.chosen is None:
        cause = f"training needs {shown(choice.smallest.prediction.total)} at least; {shown(budget)} are there"
        found = [f"{remedy.text} ({shown(remedy.total)})" for remedy in remedies(run, budget)]
        raise InputError([Problem("train", cause, f"set {', or '.join(found)}" if found else "")])
    return choice.chosen.plan


def budget_of(work: Work) -> int | None:
    """Bytes that a training may take: what the build was given, or what a card has free; None on a CPU."""
    given = work.hints.get("budget")
    if given is not None:
        return int(given)
    if not _on_card():
        return None
    import torch

    return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved()


def described(works: Sequence[Work]) -> Run | None:
    """Trainings in one gang; None for LoCon, DoRA and dropouts, whose memory is not predicted."""
    first = works[0]
    settings = [NetworkSettings.of(work.params["network"], work.params["train"]) for work in works]
    if any(one.dora or one.dropping or one.locon for one in settings):
        return None
    unet, text = (header(first, first.shared[part]) for part in ("unet", "text"))
    tensors = {name: info.shape for part in (text, unet) for name, info in part.tensors.items()}
    slices = [decode(work.read(work.items[0].inputs["slice"])) for work in works]
    height, width = max({size for work in works for size in sizes(work)}, key=lambda size: size[0] * size[1])
    train = first.params["train"]
    return Run(
        Sizes.of(tensors, json.loads(unet.metadata["lorac.config"])["heads"]),
        tuple(ranks(one.adapters(first.params["targets"])) for one in settings),
        height=FACTOR * height,
        width=FACTOR * width,
        batch=max(len(batch) for steps in slices for step in steps.steps() for batch in step.batches),
        chunks=max(1, slices[0].max_token_length // 75),
        optimizer=train.get("optimizer", "adamw"),
        ema=any(work.params["train"].get("ema_decay") for work in works),
        cuda=_on_card(),
        resolution=FACTOR * max(height, width),
    )


def sizes(work: Work) -> list[tuple[int, int]]:
    """Height and width of every latent, in the order in which the schedule counts pictures. Only headers are read."""
    from lorac.kinds.train import latent_ports

    digests = [digest for port in latent_ports(work) for digest in work.columns[port]]
    known = {digest: _size(header(work, digest)) for digest in set(digests)}
    return [known[digest] for digest in digests]


def header(work: Work, digest: Digest) -> Header:
    """Of a safetensors file."""
    blob = work.open(digest)
    return read_header(blob) if isinstance(blob, Path) else header_of(blob)


def _size(latent: Header) -> tuple[int, int]:
    _, height, width = latent.tensors["mean"].shape
    return height, width


def _on_card() -> bool:
    from lorac.sd.device import pick

    return pick().name == "cuda"
