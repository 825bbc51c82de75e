"""The plan of memory by which a training runs: of the budget that the build was given, or of what a card has free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from lorac.errors import InputError, Problem
from lorac.sd.config import FACTOR
from lorac.train.memory.budget import shown
from lorac.train.memory.choose import choose, remedies
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import Sizes, ranks

if TYPE_CHECKING:
    import torch

    from lorac.kinds import training
    from lorac.sd.clip import TextEncoder
    from lorac.sd.unet import UNet

STEPS_SEEN = 100
"""So many steps tell how large batches are."""


def planned(runs: Sequence[training.Run], unet: UNet, text: TextEncoder) -> Plan | None:
    """The quickest plan that fits, for all LoRAs of a gang; None where nothing limits memory or nothing is known.

    Raises InputError where no plan fits.
    """
    device = unet.conv_in.weight.device
    given = runs[0].work.hints.get("budget")
    budget = int(given) if given is not None else _free(device) if device.type == "cuda" else None
    if budget is None or any(run.member.lora.settings.dropping or _special(run) for run in runs):
        return None
    run = _described(runs, unet, text, device.type == "cuda")
    choice = choose(run, budget)
    if choice.chosen is None:
        cause = f"training needs {shown(choice.smallest.prediction.total)} at least; {shown(budget)} are there"
        found = [f"{remedy.text} ({shown(remedy.total)})" for remedy in remedies(run, budget)]
        raise InputError([Problem("train", cause, f"set {', or '.join(found)}" if found else "")])
    return choice.chosen.plan


def _special(run: training.Run) -> bool:
    """Whether its LoRA is of a kind whose memory is not predicted."""
    return any(adapter.target.extra or adapter.dora for adapter in run.member.lora.adapters())


def _free(device: torch.device) -> int:
    """Bytes that a card has for this process."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)


def _described(runs: Sequence[training.Run], unet: UNet, text: TextEncoder, cuda: bool) -> Run:
    u, t = unet.config, text.config
    sizes = Sizes(u.width, u.context, u.heads, text=t.width, text_layers=t.layers, text_inner=t.inner)
    latents = [latent for run in runs for latent in run.pictures.latents]
    height, width = max((tuple(latent.shape[1:]) for latent in latents), key=lambda size: size[0] * size[1])
    batch = max(len(b) for run in runs for step in islice(run.slice.steps(), STEPS_SEEN) for b in step.batches)
    return Run(
        sizes,
        tuple(ranks(run.member.lora.adapters()) for run in runs),
        height=FACTOR * height,
        width=FACTOR * width,
        batch=batch,
        chunks=max(1, runs[0].slice.max_token_length // 75),
        optimizer=runs[0].settings.optimizer,
        ema=any(run.settings.ema_decay for run in runs),
        cuda=cuda,
        resolution=FACTOR * max(height, width),
    )
