"""Which trainings gain by being in one gang, and how many memory holds: known before torch is imported.

In a pass of a gang every member has as many rows. Where the batch of one has another shape than that of another, it
takes a pass of its own, in which the others' rows count for nothing. With random buckets of two sizes, a gang of five
computes 1.9 times the rows that it needs, with three sizes 2.6 times; more than what a gang brings (1.3 to 2 times).
So only those are trained together whose steps have equal shapes: recipes with the same pictures, seed and batch size,
whatever else they vary, and all recipes with one bucket and batch size.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

from lorac.digest import Digest
from lorac.engine.protocol import Work
from lorac.sd.config import FACTOR
from lorac.sd.lora_settings import NetworkSettings
from lorac.sd.safetensors import Header, header_of, read_header
from lorac.train.memory.choose import choose
from lorac.train.memory.run import Run
from lorac.train.memory.shapes import Sizes, ranks
from lorac.train.slices import Slice, decode

MOST = 8
"""LoRAs in a gang. What more would bring was not measured."""
SLOWER = 1.05
"""What a plan that saves memory may cost in time, over the best plan: more than that, and a smaller gang is quicker."""
_MEMORY = Path("/proc/meminfo")


def shapes(work: Work, steps: Slice) -> Hashable:
    """(samples, height, width) of the batches of each step, or of one step if all are alike."""
    sizes = _sizes(work)
    found = tuple(tuple((len(batch), sizes[batch[0].item]) for batch in step.batches) for step in steps.steps())
    return found[:1] if len(set(found)) == 1 else found


def fitting(run: Run | None, budget: int | None) -> int:
    """How many LoRAs like that of `run` are trained at once: as many as fit `budget` without computing much again.

    `run` is None for what cannot be predicted, `budget` where nothing limits memory or its size is not known.
    """
    if run is None or budget is None:
        return MOST
    for count in range(MOST, 1, -1):
        choice = choose(replace(run, networks=run.networks[:1] * count), budget)
        if choice.chosen is not None and choice.times(choice.chosen) <= SLOWER:
            return count
    return 1


def of_work(work: Work) -> tuple[Run | None, int | None]:
    """What the planner has to know of a training, and the bytes that it may take."""
    from lorac.sd.device import pick

    cuda = pick().name == "cuda"
    given = work.hints.get("budget")
    budget = int(given) if given is not None else _free_on_card() if cuda else available()
    unet, text = (_header(work, work.shared[part]) for part in ("unet", "text"))
    network, train = work.params["network"], work.params["train"]
    tensors = {name: info.shape for header in (text, unet) for name, info in header.tensors.items()}
    heads = json.loads(unet.metadata["lorac.config"])["heads"]
    steps = decode(work.read(work.items[0].inputs["slice"]))
    height, width = max(set(_sizes(work)), key=lambda size: size[0] * size[1])
    run = Run(
        Sizes.of(tensors, heads),
        (ranks(NetworkSettings.of(network, train).adapters(work.params["targets"])),),
        height=FACTOR * height,
        width=FACTOR * width,
        batch=max(len(batch) for step in steps.steps() for batch in step.batches),
        chunks=max(1, steps.max_token_length // 75),
        optimizer=train.get("optimizer", "adamw"),
        ema=bool(train.get("ema_decay")),
        cuda=cuda,
        resolution=FACTOR * max(height, width),
    )
    return run, budget


def available() -> int | None:
    """Bytes that this machine has left for programs; None where that is not known without another package."""
    try:
        line = next(line for line in _MEMORY.read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def _free_on_card() -> int:
    """What this process may still take of the card, and what torch holds of it already."""
    import torch

    return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved()


def _sizes(work: Work) -> list[tuple[int, int]]:
    """Height and width of every latent, in the order in which the schedule counts pictures. Only headers are read."""
    from lorac.kinds.train import latent_ports

    digests = [digest for port in latent_ports(work) for digest in work.columns[port]]
    known = {digest: _size(_header(work, digest)) for digest in set(digests)}
    return [known[digest] for digest in digests]


def _size(header: Header) -> tuple[int, int]:
    _, height, width = header.tensors["mean"].shape
    return height, width


def _header(work: Work, digest: Digest) -> Header:
    blob = work.open(digest)
    return read_header(blob) if isinstance(blob, Path) else header_of(blob)
