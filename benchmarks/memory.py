"""Predicted and true peaks of memory of a training step, over a grid of settings.

    python -m benchmarks.memory [--quick] [--jobs 2]
    python -m benchmarks.memory --real

`peaks.py` says what the truth is. The settings of `usual` were looked at while the formulas of `lorac.train.memory`
were written; those of `held_back` are drawn at random and were measured when the formulas stood. --real compares
full-size steps without numbers with the CPU allocator's own count of them, and adds that to the result (11 GB, three
minutes).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.common import RESULTS, commit, machine, table, versions, write_result
from benchmarks.peaks import BOTH, UNET, Point, Setting, Size, measure, on_cuda, on_real_cpu
from benchmarks.tiers import TIERS
from lorac.train.memory.choose import choose
from lorac.train.memory.shapes import Sizes
from lorac.train.switches import Recompute

Case = tuple[Setting, list[Size]]
SIDES = (256, 320, 384, 448, 512, 576, 640, 704, 768)
RANKS = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256)
SEED, DRAWN, DRAWN_CPU = 20261123, 60, 12
REAL = (
    (Setting(128, half=False), Size(256, 256, 1)),
    (Setting(16, UNET, Recompute.BLOCK, half=False), Size(384, 256, 2)),
    (Setting(32, UNET, Recompute.NOTHING, gang=2, half=False), Size(256, 320, 1)),
)


def usual(quick: bool = False) -> Iterator[Case]:
    """79 steps as on a card and 8 as on a CPU; or 4."""
    square = [Size(side, side, batch) for side, batch in ((256, 1), (256, 8), (512, 1), (512, 4), (768, 1))]
    if quick:
        yield Setting(), square[2:4]
        yield Setting(16, UNET, Recompute.TRANSFORMER, 2), [Size(384, 256, 2)]
        yield Setting(16, UNET, Recompute.BLOCK, half=False), [Size(256, 256, 1)]
        return
    for level, targets in product(list(Recompute), (BOTH, UNET)):
        yield Setting(level=level, targets=targets), square
    for rank in (1, 16, 64, 256):
        yield Setting(rank), [Size(384, 384, 2), Size(640, 448, 1)]
        yield Setting(rank, UNET, Recompute.BLOCK), [Size(384, 384, 2)]
    for gang in (2, 3, 4, 5):
        yield Setting(32, gang=gang), [Size(256, 256, 1), Size(512, 384, 2)]
        yield Setting(64, UNET, Recompute.TRANSFORMER, gang), [Size(512, 512, 1)]
    yield Setting(targets=UNET, level=Recompute.BLOCK, away=True), square
    for level in (Recompute.NOTHING, Recompute.ELEMENTWISE, Recompute.TRANSFORMER, Recompute.BLOCK):
        yield Setting(level=level, half=False), [Size(256, 256, 1), Size(512, 512, 2)]


def held_back(count: int, half: bool) -> Iterator[Case]:
    """Settings drawn at random, of one step each, with resolutions from 256 to 768 of any shape."""
    draw = random.Random(SEED + half)
    for _ in range(count):
        targets, gang = draw.choice((BOTH, UNET)), draw.choice((1, 1, 2, 3, 4, 5))
        setting = Setting(
            draw.choice(RANKS),
            targets,
            draw.choice(list(Recompute)),
            gang,
            half,
            away=half and targets == UNET and draw.random() < 0.3,
            chunks=draw.choice((1, 2, 3)),
        )
        yield setting, [Size(draw.choice(SIDES), draw.choice(SIDES), draw.randint(1, 8 if gang == 1 else 4))]


def tiers() -> list[dict[str, Any]]:
    """512 px, rank 128, AdamW: what the planner chooses for budgets of cards."""
    rows = []
    for gib, batch, targets in TIERS:
        run = Setting(targets=targets).run(Size(512, 512, batch), Sizes(), cuda=True)
        chosen = choose(run, gib * 2**30).chosen
        row: dict[str, Any] = {"gib": gib, "batch": batch, "text": targets == BOTH, "fits": chosen is not None}
        if chosen is not None:
            plan = chosen.plan
            row |= {"split": plan.split, "recompute": plan.recompute.name.lower(), "away": plan.away}
            row |= {"total": chosen.prediction.total, "parts": chosen.prediction.parts}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few settings, nothing written")
    parser.add_argument("--real", action="store_true", help="full-size steps on real tensors instead")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    if options.real:
        (RESULTS / "memory.json").write_text(_with_real([_real(*case) for case in REAL]), encoding="utf-8")
        return
    cases = {"usual": list(usual(options.quick))}
    if not options.quick:
        cases["held back"] = [*held_back(DRAWN, True), *held_back(DRAWN_CPU, False)]
    found = {name: _measured(some, options.jobs) for name, some in cases.items()}
    if torch.cuda.is_available():
        found["cuda"] = [point for case in cases["usual"] if case[0].half for point in on_cuda(*case)]
    points = [point for some in found.values() for point in some]
    print(_table(points))
    for name, some in found.items():
        print(f"{name}: {len(some)} steps; largest error {_worst(some):+.1%}, median {_median(some):.2%}")
    if not options.quick:
        _write(found)


def _measured(cases: Sequence[Case], jobs: int) -> list[Point]:
    started, found = time.perf_counter(), list[Point]()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for points in pool.map(_points, cases):
            found += points
            print(f"{len(found)} steps, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def _points(case: Case) -> list[Point]:
    torch.set_num_threads(1)
    return list(measure(*case))


def _real(setting: Setting, size: Size) -> dict[str, Any]:
    (point,) = measure(setting, [size])
    allocated = on_real_cpu(setting, size)
    facts = point.facts()
    facts |= {"allocator": allocated, "method_error": round(point.true / allocated - 1, 4)}
    facts["error"] = round(point.predicted / allocated - 1, 4)
    print(f"real: {facts}", flush=True)
    return facts


def _worst(points: Sequence[Point]) -> float:
    return max((point.error for point in points), key=abs)


def _median(points: Sequence[Point]) -> float:
    return statistics.median(abs(point.error) for point in points)


def _table(points: Sequence[Point]) -> str:
    rows = []
    for p in points:
        s, size = p.setting, p.size
        what = f"{size.height}×{size.width} px, batch {size.batch}, rank {s.rank}, gang {s.gang}, {s.chunks} chunks"
        how = [s.level.name.lower(), "card" if s.half else "CPU", "trained" if s.text else "away" if s.away else ""]
        rows.append([what, *how, *(f"{size / 1e6:.0f}" for size in (p.predicted, p.true)), f"{p.error:+.1%}"])
    return table(["setting", "recompute", "as on a", "text encoder", "predicted MB", "true MB", "error"], rows)


def _with_real(real: Sequence[Mapping[str, Any]]) -> str:
    """The result that is there, with these."""
    found = json.loads((RESULTS / "memory.json").read_text("utf-8"))
    return json.dumps(found | {"real": real}, indent=2) + "\n"


def _write(found: Mapping[str, Sequence[Point]]) -> None:
    where = {"machine": machine(), "versions": versions(["torch"]), "commit": commit()}
    errors = {
        name: {"steps": len(some), "largest": round(_worst(some), 4), "median": round(_median(some), 4)}
        for name, some in found.items()
    }
    steps = {name: [point.facts() | {"cuda": point.setting.half} for point in some] for name, some in found.items()}
    write_result("memory", {**where, "errors": errors, "tiers": tiers(), "steps": steps})


if __name__ == "__main__":
    main()
