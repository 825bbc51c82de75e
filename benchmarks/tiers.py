"""The 8 GB promise on real memory: 20 steps each under limits of 8, 6, 4 and 3 GiB, as the planner plans them.

    python -m benchmarks.tiers

512 px, rank 128, captions of two chunks, AdamW; the tiers are those of `memory.py`. Each is a process of its own in
which torch may not take more than the limit, and the plan is the one that `lorac build` would choose for a card of
that size. Compared are the prediction, without what CUDA takes for itself, and torch's own count: the most that tensors
took (`allocated`), and the most that was taken from the card for them (`reserved`). The exit code is 1 if a step did
not fit, or if a prediction is more than 5 % off. Only a card counts its memory in this way; on a CPU it can be tried
with --device cpu --size mini, where nothing is limited or compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common import ROOT, environment, keep, table
from benchmarks.models import SIZES, draw
from benchmarks.peaks import BOTH, UNET, Setting, Size, sizes_of, step, trainer_of
from lorac.train.memory.choose import choose
from lorac.train.memory.predict import CONTEXT

TIERS = ((8, 4, BOTH), (6, 4, UNET), (4, 1, UNET), (4, 4, UNET), (3, 1, UNET))
"""(GiB, batch, what is trained)"""
STEPS, RANK = 20, 128
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
        rows.append(_in_a_process(number, options))
        if not options.json:  # now and not at the end: there may be no time for all
            keep("tiers", case, {"rows": rows, "steps": options.steps}, ["torch"])
    print(json.dumps({"rows": rows}) if options.json else _table(rows))
    if not all(row["held"] for row in rows):
        sys.exit(1)


def _in_a_process(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """The facts of a tier; of one that fails, its last words."""
    gib, batch, targets = TIERS[number]
    row: dict[str, Any] = {"gib": gib, "batch": batch, "text": targets == BOTH}
    given = {name: str(getattr(options, name)) for name in ("device", "size", "px", "steps")}
    more = [part for name, value in given.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "benchmarks.tiers", "--child", str(number), *more]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return row | {"held": False, "said": f"took more than {SECONDS} s"}
    if done.returncode:
        return row | {"held": False, "said": (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row | found


def tier(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: plan, limit, train."""
    gib, batch, targets = TIERS[number]
    cuda = options.device == "cuda"
    models = draw(SIZES[options.size], options.device)
    size = Size(options.px, options.px, batch)
    setting = Setting(RANK, targets, half=cuda)
    run = replace(
        setting.run(size, sizes_of(models.size.unet, models.size.text), cuda=cuda), captions=options.steps + 1
    )
    chosen = choose(run, gib * 2**30).chosen
    if chosen is None:
        return {"held": False, "said": "no plan fits"}
    plan, predicted = chosen.plan, chosen.prediction.total - chosen.prediction.context
    unet, text = models.unet, models.text.to("cpu", torch.float32) if plan.away else models.text
    del models
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        torch.cuda.reset_peak_memory_stats()
    setting = replace(setting, level=plan.recompute, away=plan.away, split=plan.split)
    trainer = trainer_of((unet, text), setting)
    for index in range(options.steps):
        step(trainer, size, index)
    facts = {"recompute": plan.recompute.name.lower(), "split": plan.split, "away": plan.away, "predicted": predicted}
    if not cuda:
        return facts | {"held": trainer.split == plan.split}
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    error = predicted / allocated - 1
    return facts | {
        "allocated": allocated,
        "reserved": reserved,
        "error": round(error, 4),
        "on_a_card": reserved + CONTEXT <= gib * 2**30,
        "held": trainer.split == plan.split and abs(error) <= WITHIN,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        what = f"{row['gib']} GiB, batch {row['batch']}, {'U-Net and text' if row['text'] else 'U-Net'}"
        figures = (row.get(name) for name in ("predicted", "allocated", "reserved"))
        sizes = ["-" if size is None else f"{size / 2**30:.2f}" for size in figures]
        error = f"{row['error']:+.1%}" if "error" in row else "-"
        cells.append([what, row.get("recompute", row.get("said", "")), *sizes, error, "yes" if row["held"] else "NO"])
    return table(["tier", "computed again", "predicted GiB", "allocated", "reserved", "error", "held"], cells)


if __name__ == "__main__":
    main()
