"""How long after the edit of one caption the first training step is done, with everything else in the store.

    python -m benchmarks.edit_caption [--rounds 5]

60 pictures with captions, the embedded base, on the CPU. A round edits one caption, starts `lorac build` in a process
of its own, and waits for the event that tells of the first step; then the process is killed. In turns with it, a
process that only imports torch: what no such program can do without, and what the machine's speed shows in.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, Series, keep, run, table, times

TARGET = 3.0
PICTURES = ROOT / "recipes" / "images" / "reg_1girl"
RECIPE = """
[[source]]
path = "pictures"
trigger = ["izumi riho"]

[caption]
exclude = ["1girl", "solo"]
shuffle_caption = true
keep_tokens = 1

[train]
steps = 1
max_token_length = 150
"""
BUILD = [sys.executable, "-m", "lorac", "build", "--json", "recipe.toml"]
IMPORT = [sys.executable, "-c", "import torch"]
STEP = '"NodeProgress", "node": "recipe:train"'
LORAC, TORCH = "lorac", "import torch"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        series = measure(Path(folder), 3 if options.quick else options.rounds)
    rows = [[name, f"{s.median:.2f}", f"{min(s.seconds):.2f}"] for name, s in series.items()]
    print(table(["caption edit to first step", "median s", "best s"], rows))
    facts = {
        "pictures": len(list(PICTURES.glob("*.png"))),
        "target": TARGET,
        "median": round(series[LORAC].median, 3),
        "over_import": round(times(series, LORAC, TORCH), 3),
        "seconds": {name: s.facts() for name, s in series.items()},
    }
    keep("edit_caption", "mini", facts, ["lorac", "torch"])


def measure(folder: Path, rounds: int) -> dict[str, Series]:
    """Seconds of whole processes."""
    shutil.copytree(PICTURES, folder / "pictures")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    series = {name: Series(name) for name in (LORAC, TORCH)}
    print(f"the first build took {run(BUILD, folder):.1f} s", flush=True)
    run(IMPORT, folder)
    captions = sorted((folder / "pictures").glob("*.txt"))
    for number in range(rounds):
        edited = captions[number]
        edited.write_text(f"{edited.read_text('utf-8').strip()}, edit {time.time_ns()}", encoding="utf-8")
        series[LORAC].seconds.append(run([*BUILD, "--set", "train.steps=600"], folder, STEP, stop=True))
        series[TORCH].seconds.append(run(IMPORT, folder))
    return series


if __name__ == "__main__":
    main()
