"""Training steps per second: lorac beside diffusers + PEFT, on the same random weights.

    pip install 'lorac[bench]'
    python -m benchmarks.step --size mini
    python -m benchmarks.step --size full --px 512 --batch 1 [--rounds 3] [--own] [--compile]

`mini` is the embedded base's size: 128 px, 264 modules of U-Net and text encoder, captions of two chunks, clip skip 2.
`full` is SD1.5's: the 192 modules of the U-Net; text states and latents are cached on both sides. Rank and alpha 128,
float32 (on CUDA float16 with a float32 LoRA), AdamW, clipping at norm 1. Each is used as it is meant to be: diffusers
and PEFT eager, lorac with everything in `lorac/train/switches.py` on.

By default both train in one process, in turns, and so with the same allocator: lorac has told the C library to keep
what is freed. A matrix product is timed in every round: the share of its rate is what a step reaches of the machine.
With `--own` each has processes of its own, in turns, on the same cores, so that each has the allocator that its users
have. With `--compile` diffusers and PEFT take part once more, under torch.compile; compiling is not counted. Ratios are
medians over rounds of the ratio in a round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from benchmarks.common import WARM, Contestant, Series, alone, alternate, keep, pin, processes, table, times
from benchmarks.flops import unet_step
from benchmarks.gemm import Gemm
from benchmarks.models import SIZES, Size, draw
from benchmarks.ours import LoracStep
from benchmarks.peer import PeftStep

OURS, PEER, GEMM = "lorac", "diffusers + PEFT", "matrix product"
COMPILED = "diffusers + PEFT, compiled"
PACKAGES = ("torch", "diffusers", "peft", "transformers")
STEPS = {"full": 1, "mini": 4, "cuda": 8}
"""Steps of each in a turn."""
OWN_STEPS = {"full": 3, "mini": 30}
"""Measured steps of a process of its own."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--px", type=int, help="side of the pictures; by default the base's own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="by default 15 (mini) or 3 (full)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--own", action="store_true", help="each in processes of its own, as its users start it")
    parser.add_argument(
        "--compile", nargs="?", const="inductor", metavar="BACKEND", help="the peer also under torch.compile"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    parser.add_argument("--child", choices=[OURS, PEER], help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = SIZES[options.size]
    options.px = options.px or size.px
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(child(options.child, size, options)))
        return
    if options.device == "cpu":
        pin(options.threads)
    facts = (own if options.own else together)(size, options)
    if options.json:
        print(json.dumps(facts))
    else:
        keep("step", case_name(options), facts, PACKAGES)


def case_name(options: argparse.Namespace) -> str:
    """The name of a case in the JSON: `full-512-b1`, with `-own`, `-compile` and `-cuda` where that is so."""
    said = {"-own": options.own, "-compile": options.compile, "-cuda": options.device == "cuda"}
    more = "".join(word for word, so in said.items() if so)
    return f"{options.size}-{options.px}-b{options.batch}{more}"


def together(size: Size, options: argparse.Namespace) -> dict[str, object]:
    """Both in one process, in turns."""
    models = draw(size, options.device)
    gemm = Gemm(options.device)
    # The peers first: lorac puts operations in the place of the modules.
    peers: dict[str, Contestant] = {PEER: PeftStep(models, options.px, options.batch)}
    if options.compile:
        peers[COMPILED] = PeftStep(models, options.px, options.batch, options.compile)
    contestants = {OURS: LoracStep(models, options.px, options.batch), **peers, GEMM: gemm}
    rounds = options.rounds or {"full": 3, "mini": 15}[size.name]
    steps = STEPS["cuda" if options.device == "cuda" else size.name]
    series = alternate(contestants, rounds, steps, WARM[size.name])
    rate = gemm.flops / series[GEMM].median
    ratio = times(series, PEER, OURS)
    facts = facts_of(series, ratio, options) | {"gemm_gflops": round(rate / 1e9)}
    if options.compile:
        facts["ratio_compiled"] = round(times(series, COMPILED, OURS), 3)
        print(f"and {facts['ratio_compiled']} times those of the compiled ones")
    if size.name == "full":  # the mini size is bound by the number of operations
        flops = unet_step(size.unet, (options.px // 8,) * 2, options.batch, 77, size.rank).total
        shares = {name: share(series[name], series[GEMM], flops / gemm.flops) for name in (OURS, PEER)}
        facts |= {"tflop": round(flops / 1e12, 3), "share": shares}
        print(f"of {rate / 1e9:.0f} GFLOP/s: " + ", ".join(f"{name} {part:.0%}" for name, part in shares.items()))
    return facts


def share(series: Series, gemm: Series, work: float) -> float:
    """The part of the matrix product's rate that a step of `work` times its operations reached."""
    return round(times({"step": series, "gemm": gemm}, "gemm", "step") * work, 3)


def own(size: Size, options: argparse.Namespace) -> dict[str, object]:
    """Processes of their own, in turns."""
    given = {name: getattr(options, name) for name in ("size", "px", "batch", "threads", "device")}
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    commands = {name: ["step", "--child", name, *arguments] for name in (OURS, PEER)}
    series, peaks = processes(commands, options.rounds or {"full": 2, "mini": 5}[size.name])
    return facts_of(series, times(series, PEER, OURS), options) | {"peak_bytes": peaks}


def child(name: str, size: Size, options: argparse.Namespace) -> dict[str, float]:
    """One side alone."""
    make: Callable[..., Contestant] = {OURS: LoracStep, PEER: PeftStep}[name]
    step = make(draw(size, options.device), options.px, options.batch)
    return alone(step, OWN_STEPS[size.name], options.device)


def facts_of(series: dict[str, Series], ratio: float, options: argparse.Namespace) -> dict[str, object]:
    """Print a table; returns what the JSON says."""
    what = f"{options.size}, {options.px} px, batch {options.batch}"
    what += ", own processes" if options.own else ", one process"
    rows = [[s.name, f"{s.median * 1e3:.0f}", f"{min(s.seconds) * 1e3:.0f}"] for s in series.values()]
    print(table([what, "median ms", "best ms"], rows))
    print(f"lorac makes {ratio:.2f} times the steps of diffusers + PEFT", flush=True)
    return {
        "ratio": round(ratio, 3),
        "threads": options.threads,
        "device": options.device,
        "seconds": {name: s.facts() for name, s in series.items()},
    }


if __name__ == "__main__":
    main()
