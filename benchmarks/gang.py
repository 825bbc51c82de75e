"""LoRAs trained together against the same LoRAs one after another, in LoRA-steps per second.

    python -m benchmarks.gang --size mini --count 5
    python -m benchmarks.gang --size full --px 128 --count 5

One trainer of `count` LoRAs and one trainer of a single LoRA, of the same random weights, in turns, batch 1 for each
LoRA; at SD1.5's size each in processes of its own, as both together want 20 GB. One after another takes `count` steps
of the single one, so the ratio is `count` times the time of its step over that of a step of the gang: the median over
rounds.
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.common import WARM, alone, alternate, keep, pin, processes, table, times
from benchmarks.flops import unet_step
from benchmarks.gemm import Gemm
from benchmarks.models import SIZES, draw
from benchmarks.ours import LoracStep

GANG, ALONE = "together", "alone"
STEPS = 3
"""Measured steps of a process of its own."""
LARGE = 30 * 2**30
"""Bytes of a card that holds a gang of five and a single LoRA at SD1.5's size."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--px", type=int)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="by default 10 (mini) or 3 (full)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    parser.add_argument("--child", choices=[GANG, ALONE], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu":
        pin(options.threads)
    torch.set_num_threads(options.threads)
    size, count = SIZES[options.size], options.count
    share: dict[str, float] = {}
    px = options.px or size.px
    if options.child:
        step = LoracStep(draw(size, options.device), px, 1, count if options.child == GANG else 1)
        print(json.dumps(alone(step, STEPS, options.device)))
        return
    if size.name == "full" and not _holds_both(options.device):
        given = ["--size", size.name, "--px", px, "--count", count, "--threads", options.threads]
        arguments = [str(part) for part in [*given, "--device", options.device]]
        commands = {name: ["gang", "--child", name, *arguments] for name in (GANG, ALONE)}
        series, peaks = processes(commands, options.rounds or 3)
    else:
        models = draw(size, options.device)
        contestants = {ALONE: LoracStep(models.again(), px, 1), GANG: LoracStep(models, px, 1, count)}
        series, peaks = alternate(contestants, options.rounds or 10, steps=4, warm=WARM["mini"]), {}
        if _holds_both(options.device) and size.name == "full":
            gemm = Gemm("cuda")
            rate = gemm.flops / alternate({"gemm": gemm}, 5)["gemm"].median
            flops = unet_step(size.unet, (px // 8,) * 2, count, 77, size.rank).total
            share["share"] = round(flops / series[GANG].median / rate, 3)
    ratio = count * times(series, ALONE, GANG)
    rows = [[f"{count} LoRAs together", f"{series[GANG].median * 1e3:.0f}", f"{count / series[GANG].median:.2f}"]]
    rows += [["one after another", f"{series[ALONE].median * 1e3:.0f}", f"{1 / series[ALONE].median:.2f}"]]
    print(table([f"{size.name}, {px} px", "median ms a step", "LoRA-steps/s"], rows))
    print(f"together they make {ratio:.2f} times the steps")
    facts = {
        "ratio": round(ratio, 3),
        "count": count,
        "threads": options.threads,
        "peak_bytes": peaks,
        **share,
        "seconds": {name: s.facts() for name, s in series.items()},
    }
    if options.json:
        print(json.dumps(facts))
        return
    device = "-cuda" if options.device == "cuda" else ""
    keep("gang", f"{size.name}-{px}-n{count}{device}", facts, ["torch"])


def _holds_both(device: str) -> bool:
    """A large card can have both in one process."""
    return device == "cuda" and torch.cuda.get_device_properties(0).total_memory >= LARGE


if __name__ == "__main__":
    main()
