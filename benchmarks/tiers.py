"""The 8 GB promise on real memory: 20 steps each under limits of 8, 6, 4 and 3 GiB, as the planner plans them.

    python -m benchmarks.tiers

512 px, rank 128, captions of two chunks, AdamW; the tiers are those of `memory.py`. Each is a process of its own in
which torch may not take more than the limit, and the plan is the one that `lorac build` would choose for a card of
that size. All pictures have one shape; in two tiers as many steps follow with five shapes (buckets) at random, none
larger than the first, when the first one's CUDA graph is there.

Compared are the prediction, without what CUDA takes for itself, and torch's own count: the most that tensors took
(`allocated`), and the most that was taken from the card for them (`reserved`). The exit code is 1 if a step did not
fit, if graphs were given up, or if a prediction is more than 5 % off. cuBLAS gets as much memory as on cards of such
sizes. Only a card counts its memory in this way; on a CPU it can be tried with --device cpu --size mini, where nothing
is limited or compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lorac.kernels import gate

from benchmarks.common import ROOT, environment, keep, table
from benchmarks.models import SIZES, draw
from benchmarks.peaks import BOTH, UNET, Setting, Size, sizes_of, step, trainer_of
from lorac.train.memory.blas import ENVIRONMENT, workspace
from lorac.train.memory.choose import Outcome, choose
from lorac.train.memory.predict import CONTEXT
from lorac.train.step import Trainer

TIERS = ((8, 4, BOTH), (6, 4, UNET), (4, 1, UNET), (4, 4, UNET), (3, 1, UNET))
"""(GiB, batch, what is trained)"""
BUCKETED = (0, 2)
"""The tiers that go on with several shapes: to meet each for the first time takes as long as many steps."""
BUCKETS = ((512, 512), (448, 576), (576, 448), (384, 640), (640, 384))
"""Height and width of pictures at 512 px."""
BLAS = ":4096:2:16:8"
"""cuBLAS's memory on cards up to Ada, as the environment says it; on Hopper it would be four times that."""
STEPS, RANK, SEED = 20, 128, 1
WITHIN = 0.05
SECONDS = 100


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", type=int, metavar="N", help="the tier of this number, from 0")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    if options.child is not None:
        print(json.dumps(tier(options.child, options)))
        return
    numbers = range(len(TIERS)) if options.only is None else [options.only]
    case = f"{options.size}-{options.px}" + ("-cuda" if options.device == "cuda" else "")
    rows = []
    for number in numbers:
        rows += _in_a_process(number, options)
        if not options.json:  # now and not at the end: there may be no time for all
            keep("tiers", case, {"rows": rows, "steps": options.steps}, ["torch"])
    print(json.dumps({"rows": rows}) if options.json else _table(rows))
    if not all(row["held"] for row in rows):
        sys.exit(1)


def _in_a_process(number: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The facts of a tier, with one shape and with several; of one that fails, its last words."""
    gib, batch, targets = TIERS[number]
    row: dict[str, Any] = {"gib": gib, "batch": batch, "text": targets == BOTH}
    given = {name: str(getattr(options, name)) for name in ("device", "size", "px", "steps")}
    more = [part for name, value in given.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "benchmarks.tiers", "--child", str(number), *more]
    told: dict[str, Any] = {"capture_output": True, "text": True, "encoding": "utf-8"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment() | {ENVIRONMENT: BLAS}, timeout=SECONDS, **told)
    except subprocess.TimeoutExpired:
        return [row | {"held": False, "said": f"took more than {SECONDS} s"}]
    if done.returncode:
        return [row | {"held": False, "said": (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]}]
    return [row | found for found in json.loads(done.stdout.splitlines()[-1])]


def tier(number: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """In a process of its own: plan, limit, train."""
    gib, batch, targets = TIERS[number]
    cuda = options.device == "cuda"
    models = draw(SIZES[options.size], options.device)
    size = Size(options.px, options.px, batch)
    setting = Setting(RANK, targets, half=cuda, kernels=cuda and gate.opens(torch.zeros(1, device="cuda")))
    run = setting.run(size, sizes_of(models.size.unet, models.size.text), cuda=cuda)
    blas = workspace(torch.cuda.get_device_capability(), os.environ) if cuda else 0
    chosen = choose(replace(run, captions=2 * options.steps, blas=blas), gib * 2**30).chosen
    if chosen is None:
        return [{"held": False, "said": "no plan fits"}]
    plan = chosen.plan
    unet, text = models.unet, models.text.to("cpu", torch.float32) if plan.away else models.text
    del models
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    setting = replace(setting, level=plan.recompute, away=plan.away, split=plan.split, room=plan.tapes)
    trainer = trainer_of((unet, text), setting)
    draws, buckets = random.Random(SEED), [_scaled(bucket, options.px) for bucket in BUCKETS]
    turns = [[size] * options.steps]
    if number in BUCKETED:
        turns.append([Size(*draws.choice(buckets), batch) for _ in range(options.steps)])
    return [
        {"shapes": len(set(sizes)), **_train(trainer, sizes, phase * options.steps, chosen, gib, cuda)}
        for phase, sizes in enumerate(turns)
    ]


def _scaled(bucket: tuple[int, int], px: int) -> tuple[int, int]:
    """For another resolution than 512 px, in pixels of latents."""
    height, width = (side * px // 512 // 8 * 8 for side in bucket)
    return height, width


def _train(
    trainer: Trainer, sizes: Sequence[Size], first: int, chosen: Outcome, gib: int, cuda: bool
) -> dict[str, Any]:
    """Steps of these sizes, and what they took."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for index, size in enumerate(sizes, first):
        step(trainer, size, index)
    plan, predicted = chosen.plan, chosen.prediction.total - chosen.prediction.context
    facts = {"recompute": plan.recompute.name.lower(), "split": plan.split, "away": plan.away, "predicted": predicted}
    as_planned = trainer.split == plan.split
    if not cuda:
        return facts | {"held": as_planned}
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    error = predicted / allocated - 1
    return facts | {
        "allocated": allocated,
        "reserved": reserved,
        "error": round(error, 4),
        "graphs": len(trainer.tapes.tapes()),
        "on_a_card": reserved + CONTEXT <= gib * 2**30,
        "held": as_planned and abs(error) <= WITHIN and not trainer.tapes.failures,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        what = f"{row['gib']} GiB, batch {row['batch']}, {'U-Net and text' if row['text'] else 'U-Net'}"
        what += f", {row['shapes']} shapes" if row.get("shapes", 1) > 1 else ""
        figures = (row.get(name) for name in ("predicted", "allocated", "reserved"))
        sizes = ["-" if size is None else f"{size / 2**30:.2f}" for size in figures]
        error = f"{row['error']:+.1%}" if "error" in row else "-"
        cells.append([what, row.get("recompute", row.get("said", "")), *sizes, error, "yes" if row["held"] else "NO"])
    return table(["tier", "computed again", "predicted GiB", "allocated", "reserved", "error", "held"], cells)


if __name__ == "__main__":
    main()
