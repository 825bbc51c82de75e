"""`[train] deterministic = true`: are two trainings equal to the last bit, and what does it cost?

    python -m benchmarks.deterministic --size full --px 512 --device cuda [--steps 6] [--rounds 5]

Twice the same steps from the same start, by trainers of their own: the SHA-256 of factors and moments must be equal, or
the exit code is 1. Then steps with it and without it, in turns, in one process; the ratio is what is left of the
steps/s. On a CPU both are equal, and so should the times be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys

import torch

from benchmarks.common import WARM, Contestant, alternate, keep, table, times
from benchmarks.models import SIZES, Models, draw
from benchmarks.ours import LoracStep
from lorac.train.deterministic import deterministic, fixed_workspace
from lorac.train.switches import Switches

ON, OFF = "deterministic", "as usual"
FIXED = Switches(attention="sdpa")
"""As a build sets them: nothing is timed."""


class DeterministicStep:
    """One of lorac's steps, within `deterministic`."""

    def __init__(self, models: Models, px: int) -> None:
        torch.manual_seed(0)  # of the latents
        self.step = LoracStep(models.again(), px, 1, switches=FIXED)

    def __call__(self, index: int) -> object:
        with deterministic(True):
            return self.step(index)

    def finish(self) -> None:
        self.step.finish()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--px", type=int)
    parser.add_argument("--steps", type=int, default=6, help="of the trainings that are compared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fixed_workspace()
    size = SIZES[options.size]
    px = options.px or size.px
    models = draw(size, options.device)
    digests = [digest(models, px, options.steps) for _ in range(2)]
    contestants: dict[str, Contestant] = {ON: DeterministicStep(models, px), OFF: LoracStep(models.again(), px, 1)}
    steps = 10 if options.device == "cuda" else 1
    series = alternate(contestants, options.rounds, steps, WARM[size.name])
    ratio = times(series, ON, OFF)
    facts = {
        "equal": digests[0] == digests[1],
        "sha256": digests,
        "steps": options.steps,
        "ratio": round(1 / ratio, 3),
        "seconds": {name: s.facts() for name, s in series.items()},
    }
    if options.json:
        print(json.dumps(facts))
    else:
        rows = [[name, f"{s.median * 1e3:.1f}"] for name, s in series.items()]
        print(table([f"{size.name}, {px} px", "median ms a step"], rows))
        equal = "equal" if facts["equal"] else "NOT equal"
        print(f"{options.steps} steps twice: {equal}; {1 / ratio:.2f} of the steps/s")
        case = f"{size.name}-{px}" + ("-cuda" if options.device == "cuda" else "")
        keep("deterministic", case, facts, ["torch"])
    if not facts["equal"]:
        sys.exit(1)


def digest(models: Models, px: int, steps: int) -> str:
    """Of everything that a training has made after some steps."""
    step = DeterministicStep(models, px)
    for index in range(steps):
        step(index)
    step.finish()
    (member,) = step.step.trainer.members
    found = hashlib.sha256()
    for name, tensor in sorted(member.state().items()):
        found.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
