"""What each optimisation brings: the step with everything on against the step with one thing off.

    python -m benchmarks.ablation --size full --px 256 [--rounds 3] [--only winograd] [--device cuda]

The things are those of `lorac/train/switches.py`, and on a card each of lorac's kernels beside: without it the plain
form runs, or with it where training leaves it alone (`gate.UNUSED`). Each pair runs in one process, in turns.
`keep_memory` is the exception: it tells the C library of a whole process what to do, so each side has processes of its
own.
`python -m benchmarks.tables` makes the table in benchmarks/README.md of the JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lorac.kernels import gate

from benchmarks.common import WARM, Contestant, Series, alone, alternate, keep, pin, processes, table, times
from benchmarks.models import SIZES, Models, draw
from benchmarks.ours import LoracStep
from lorac.train.switches import Switches

THINGS = {
    "full": ("fused", "joined", "winograd", "keep_memory", "text_states"),
    "mini": ("fused", "joined", "winograd", "beside", "keep_memory", "tape"),
}
"""What can matter at a size, on a CPU."""
KERNELS = ("group_norm", "geglu", "layer_norm", "loss", "adamw", "lora_linear")
ON_CARD = ("fused", "joined", "graphs", "text_states", *KERNELS)
"""… and on a card."""
APART = "keep_memory"
APART_STEPS = {"full": 2, "mini": 30}
ON = "all on"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--px", type=int)
    parser.add_argument("--rounds", type=int, help="by default 10 (mini) or 2 (full)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help="one switch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = SIZES[options.size]
    options.px = options.px or size.px
    options.rounds = options.rounds or {"full": 2, "mini": 10}[size.name]
    torch.set_num_threads(options.threads)
    if options.child:
        step = LoracStep(draw(size), options.px, 1, switches=switched(options.child))
        print(json.dumps(alone(step, APART_STEPS[options.size])))
        return
    if options.device == "cpu":
        pin(options.threads)
    models = draw(size, options.device)
    things = THINGS[options.size] if options.device == "cpu" else ON_CARD
    for name in things if options.only is None else (options.only,):
        series = apart(name, options) if name == APART else together(name, models, options)
        ratio = times(series, name, ON)
        word = "with" if name in gate.UNUSED else "without"
        rows = [[ON, f"{series[ON].median * 1e3:.1f}"], [f"{word} {name}", f"{series[name].median * 1e3:.1f}"]]
        print(table([f"{options.size}, {options.px} px", "median ms"], rows), flush=True)
        facts = {"ratio": round(ratio, 3), "seconds": {key: s.facts() for key, s in series.items()}}
        facts["with"] = name in gate.UNUSED
        device = "-cuda" if options.device == "cuda" else ""
        keep("ablation", f"{options.size}-{options.px}-{name}{device}", facts, ["torch"])


class Changed:
    """A trainer's steps with all on but for one thing."""

    def __init__(self, name: str, models: Models, px: int) -> None:
        self._name, self._step = name, LoracStep(models, px, 1, switches=switched(name))

    def __call__(self, index: int) -> object:
        with _changed(self._name):
            return self._step(index)

    def finish(self) -> None:
        with _changed(self._name):
            self._step.finish()


@contextmanager
def _changed(name: str) -> Iterator[None]:
    """Inside, a kernel that is used is not, and one that is not is."""
    names = {name} & set(KERNELS)
    gate.UNUSED ^= names
    try:
        yield
    finally:
        gate.UNUSED ^= names


def switched(name: str) -> Switches:
    """Everything on, but for `name`, if it is one of them."""
    off: dict[str, Any] = {name: False} if hasattr(Switches(), name) else {}
    return replace(Switches(), **off)


def steps_of(options: argparse.Namespace) -> int:
    """Steps in a turn."""
    return 10 if options.device == "cuda" else {"full": 1, "mini": 4}[options.size]


def together(name: str, models: Models, options: argparse.Namespace) -> dict[str, Series]:
    """Both in this process, in turns."""
    pair: dict[str, Contestant] = {key: Changed(key, models.again(), options.px) for key in (ON, name)}
    return alternate(pair, options.rounds, steps_of(options), WARM[options.size])


def apart(name: str, options: argparse.Namespace) -> dict[str, Series]:
    """Each in processes of its own, in turns."""
    arguments = ["--size", options.size, "--px", str(options.px), "--threads", str(options.threads)]
    return processes({key: ["ablation", "--child", key, *arguments] for key in (ON, name)}, 2)[0]


if __name__ == "__main__":
    main()
