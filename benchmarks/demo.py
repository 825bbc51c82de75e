"""What `make demo` takes after the installation: the whole build of recipes/riho_head.toml from an empty store.

    python -m benchmarks.demo [--steps N]

The build is a process of its own; the seconds of each kind come from its `build.json`. With `--steps` the run is
shortened to N steps, with one epoch's files and everything else as it is. Then the JSON says so, and gives what the
whole run would take: an extrapolation, no measurement. What counts for it is the median step of the second half, since
the first steps are slower, and training begins with importing torch's parts and loading the base.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, arrivals, keep, table

RECIPE, STEPS, TARGET = "riho_head", 2808, 120.0
STEP = f'"NodeProgress", "node": "{RECIPE}:train"'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    command = [sys.executable, "-m", "lorac", "build", "--json", str(ROOT / "recipes" / f"{RECIPE}.toml")]
    if options.steps != STEPS:
        command += ["--set", f"train.steps={options.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        seconds, steps = arrivals(command, Path(folder), STEP)
        built = json.loads((Path(folder) / "build" / RECIPE / "build.json").read_text("utf-8"))
    facts = facts_of(built, seconds, steps)
    rows = [[kind, f"{took:.1f}"] for kind, took in facts["kinds"].items()]
    print(table([f"{facts['steps']} steps", "seconds"], [*rows, ["the whole process", f"{seconds:.1f}"]]))
    print(f"{facts['steps_per_second']:.1f} steps/s with the start, {1000 * facts['step']:.0f} ms a step")
    if facts["extrapolated"]:
        print(f"by this rate, {STEPS} steps would take {facts['whole_seconds']:.0f} s: computed, not measured")
    keep("demo", "whole" if not facts["extrapolated"] else "shortened", facts, ["lorac", "torch"])


def step_seconds(steps: Sequence[float]) -> float:
    """The median step of the second half, from the times at which steps were done."""
    return statistics.median(after - before for before, after in pairwise(steps[len(steps) // 2 - 1 :]))


def facts_of(built: dict[str, Any], seconds: float, steps: Sequence[float]) -> dict[str, Any]:
    """What the JSON says of a build that took `seconds`, and whose steps were done at `steps`, of which it has two."""
    training = built["training"]
    missing = STEPS - training["steps"]
    step = step_seconds(steps)
    return {
        "steps": int(training["steps"]),
        "steps_per_second": training["steps_per_second"],
        "step": round(step, 5),
        "seconds": round(seconds, 1),
        "kinds": {kind: round(entry["seconds"], 1) for kind, entry in built["kinds"].items()},
        "extrapolated": missing > 0,
        "whole_seconds": round(seconds + missing * step, 1),
        "target": TARGET,
    }


if __name__ == "__main__":
    main()
