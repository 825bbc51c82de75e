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
from lorac.sd.safetensors import Header, header_of, read_header
from lorac.train.memory.choose import choose, refusal
from lorac.train.memory.predict import CONTEXT
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes
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
        raise InputError([Problem("train", *refusal(run, choice))])
    return choice.chosen.plan


def budget_of(work: Work) -> int | None:
    """Bytes that a training may take: what the build was given, or what a card has free; None on a CPU."""
    given = work.hints.get("budget")
    if given is not None:
        return int(given)
    if not _on_card():
        return None
    import torch

    # To ask makes torch load CUDA, which predictions count, but what is free then is without it.
    return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved() + CONTEXT


def described(works: Sequence[Work]) -> Run | None:
    """Trainings in one gang; None for LoCon, DoRA and dropouts, whose memory is not predicted."""
    runs = [run for work in works if (run := described_one(work)) is not None]
    return Run.together(runs) if len(runs) == len(works) else None


def described_one(work: Work) -> Run | None:
    """One training. It has at most as many captions as samples."""
    unet, text = (header(work, work.shared[part]) for part in ("unet", "text"))
    tensors = {name: info.shape for part in (text, unet) for name, info in part.tensors.items()}
    steps, train = decode(work.read(work.items[0].inputs["slice"])), work.params["train"]
    batches = [[len(batch) for batch in step.batches] for step in steps.steps()]
    height, width = (FACTOR * side for side in max(set(sizes(work)), key=lambda size: size[0] * size[1]))
    return Run.of(
        Sizes.of(tensors, json.loads(unet.metadata["lorac.config"])["heads"]),
        work.params["network"],
        train,
        work.params["targets"],
        size=(height, width),
        batch=max(map(max, batches)),
        chunks=max(1, steps.max_token_length // 75),
        captions=max(map(sum, batches)) * max(steps.first_step + len(steps), work.total * len(steps)),
        resolution=max(height, width),
        cuda=_on_card(),
        capability=_capability(),
        kernels=_kernels(),
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


def _kernels() -> bool:
    """Whether they run: Triton may be there and a compiler for it not."""
    if not _on_card():
        return False
    import torch

    from lorac.kernels import gate

    opens: bool = gate.opens(torch.zeros(1, device="cuda"))
    return opens


def _capability() -> tuple[int, int] | None:
    if not _on_card():
        return None
    import torch

    return torch.cuda.get_device_capability()


def _on_card() -> bool:
    from lorac.sd.device import pick

    return pick().name == "cuda"
