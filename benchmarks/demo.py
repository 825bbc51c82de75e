"""What `make demo` takes after the installation: the whole build of recipes/riho_head.toml from an empty store.

    python -m benchmarks.demo [--steps N]

The build is a process of its own; the seconds of each kind come from its `build.json`. With `--steps` the run is
shortened to N steps, with one epoch's files and everything else as it is. Then the JSON says so, and gives
what the whole run would take by the steps per second that were measured: an extrapolation, no measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, keep, run, table

RECIPE, STEPS, TARGET = "riho_head", 2808, 120.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    command = [sys.executable, "-m", "lorac", "build", str(ROOT / "recipes" / f"{RECIPE}.toml")]
    if options.steps != STEPS:
        command += ["--set", f"train.steps={options.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(command, Path(folder))
        built = json.loads((Path(folder) / "build" / RECIPE / "build.json").read_text("utf-8"))
    facts = facts_of(built, seconds)
    rows = [[kind, f"{took:.1f}"] for kind, took in facts["kinds"].items()]
    print(table([f"{facts['steps']} steps", "seconds"], [*rows, ["the whole process", f"{seconds:.1f}"]]))
    print(f"{facts['steps_per_second']:.1f} steps/s")
    if facts["extrapolated"]:
        print(f"by this rate, {STEPS} steps would take {facts['whole_seconds']:.0f} s: computed, not measured")
    keep("demo", "whole" if not facts["extrapolated"] else "shortened", facts, ["lorac", "torch"])


def facts_of(built: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the JSON says of a build of `built["training"]["steps"]` steps that took `seconds`."""
    training = built["training"]
    missing = STEPS - training["steps"]
    rate = training["steps_per_second"]
    return {
        "steps": int(training["steps"]),
        "steps_per_second": rate,
        "seconds": round(seconds, 1),
        "kinds": {kind: round(entry["seconds"], 1) for kind, entry in built["kinds"].items()},
        "extrapolated": missing > 0,
        "whole_seconds": round(seconds + missing / rate, 1),
        "target": TARGET,
    }


if __name__ == "__main__":
    main()
