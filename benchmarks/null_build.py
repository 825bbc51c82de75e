"""How long 10,000 pictures take when nothing, or one caption, has changed: lorac beside doit and DVC.

    python -m benchmarks.null_build [--folder DIR] [--pictures 10000] [--rounds 5] [--peers PYTHON] [--quick]

Every time is that of a whole process, from its start. Two cases, each in several rounds, the three tools in turn:

    null   nothing has changed since the last build
    edit   one caption has changed; the time until training starts

What the tools are made to do on the same pictures and captions:

    lorac  the real build: pictures, captions, tokens, latents and the schedule of every picture, keyed by content.
           `null` is a build that trained one step. `edit` is of a run over all pictures once, a schedule of 10,000
           steps; its time is that of the event "NodeStarted" of the kind "train", where the process is killed.
    doit   a task per picture and per caption (20,000; each copies its file), then `schedule` of all captions and
           `train`, which does nothing. Files are compared by MD5 where their time and size differ (doit's default).
    DVC    one stage, `train`, which depends on the folder and does nothing, in `dvc repro`. DVC knows a folder only
           as a whole (one stage per picture takes minutes to load), so a real stage would process all pictures again.

`--quick` is for a continuous integration: 1000 pictures, three rounds, and without DVC; its figures go to
null_build_quick.json. A tool that is not installed is left out, and named. `lorac[bench]` has doit, but not DVC, which
brings some sixty packages: install it where `--peers` points.

So doit does the per-picture book-keeping that lorac does, DVC is spared it, and neither makes tokens or a schedule.
`--folder` keeps the project, whose first build takes minutes, for the next time; `--peers` is an interpreter that has
doit and DVC, if this one has not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Series, commit, machine, run, table, versions, write_result
from tests.tiny import draw_pictures, save_base

TARGETS = {"null": 1.0, "edit": 2.0}
"""Seconds that a build may take (issue 2, acceptance 6)."""

RECIPE = """
[[source]]
path = "pictures"
trigger = ["izumi riho"]

[caption]
exclude = ["1girl", "solo"]
shuffle_caption = true
keep_tokens = 1

[network]
dim = 2

[train]
base = "tiny.safetensors"
steps = 1
"""

DODO = """
import shutil
from pathlib import Path

DOIT_CONFIG = {"default_tasks": ["train"], "verbosity": 2, "reporter": "zero"}
FILES = sorted(Path("pictures").iterdir())
CAPTIONS = [path for path in FILES if path.suffix == ".txt"]


def copy(path, out):
    shutil.copyfile(path, out)


def task_file():
    for path in FILES:
        out = Path("doit") / path.name
        yield {"name": path.name, "file_dep": [path], "targets": [out], "actions": [(copy, [path, out])]}


def schedule(targets):
    Path(targets[0]).write_text("\\n".join((Path("doit") / path.name).read_text("utf-8") for path in CAPTIONS), "utf-8")


def task_schedule():
    made = [Path("doit") / path.name for path in CAPTIONS]
    return {"file_dep": made, "targets": ["doit.schedule"], "actions": [schedule]}


def train():
    print("training starts", flush=True)


def task_train():
    pictures = [Path("doit") / path.name for path in FILES if path.suffix == ".png"]
    return {"file_dep": ["doit.schedule", *pictures], "actions": [train]}
"""

DVC = """
stages:
  train:
    cmd: {python} say.py
    deps:
      - pictures
"""


class Tool:
    """One of the three: how it is called, and the words with which it says that training starts.

    `whole_run` are arguments that make it train in earnest; then it is killed when training starts.
    """

    def __init__(self, name: str, command: Sequence[str], starts: str, whole_run: Sequence[str] = ()) -> None:
        self.command, self.starts, self.whole_run = command, starts, whole_run
        self.series = {"null": Series(f"{name} null"), "edit": Series(f"{name} edit")}

    def measure(self, case: str, folder: Path) -> None:
        if case == "null":
            seconds = run(self.command, folder)
        else:
            seconds = run([*self.command, *self.whole_run], folder, self.starts, stop=bool(self.whole_run))
        self.series[case].seconds.append(seconds)
        print(f"  {self.series[case].name}: {seconds:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keep the project here")
    parser.add_argument("--pictures", type=int, help="10,000 of them, if nothing else is said")
    parser.add_argument("--rounds", type=int, help="5, if nothing else is said")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter with doit and DVC")
    parser.add_argument("--quick", action="store_true", help="1000 pictures, three rounds, without DVC")
    options = parser.parse_args()
    options.pictures = options.pictures or (1000 if options.quick else 10_000)
    options.rounds = options.rounds or (3 if options.quick else 5)
    if options.folder:
        measure(options.folder.absolute(), options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), options)


def contestants(pictures: int, peers: str) -> dict[str, Tool]:
    """The three of them."""
    return {
        "lorac": Tool(
            "lorac",
            [sys.executable, "-m", "lorac", "build", "--json", "recipe.toml"],
            '"NodeStarted", "node": "recipe:train"',
            ["--set", f"train.steps={pictures}"],
        ),
        "doit": Tool("doit", [peers, "-m", "doit"], "training starts"),
        "DVC": Tool("DVC", [peers, "-m", "dvc", "repro"], "training starts"),
    }


def measure(folder: Path, options: argparse.Namespace) -> None:
    pictures, rounds, peers = options.pictures, options.rounds, options.peers
    tools = contestants(pictures, peers)
    if options.quick:
        del tools["DVC"]
    for name in [name for name in tools if name != "lorac" and not installed(name.lower(), peers)]:
        del tools[name]
        print(f"{name} is not installed: left out", flush=True)
    prepare(folder, pictures, peers, "DVC" in tools)
    first = {}
    for name, tool in tools.items():
        first[name] = round(run(tool.command, folder), 1)
        print(f"{name}: the first build took {first[name]} s", flush=True)
    for tool in tools.values():
        run(tool.command, folder)  # unmeasured: now every tool has seen files older than its clock's grain
    for _ in range(rounds):
        for tool in tools.values():
            tool.measure("null", folder)
    edited = sorted((folder / "pictures").glob("*.txt"))[pictures // 2]
    for _ in range(rounds):
        before = edited.read_text("utf-8").partition(", edit")[0]
        edited.write_text(f"{before}, edit {time.time_ns()}", encoding="utf-8")  # never seen: the store forgets nothing
        for tool in tools.values():
            tool.measure("edit", folder)
    show(tools, first, pictures, peers, options.quick)


def installed(package: str, python: str) -> bool:
    """Whether an interpreter has it."""
    code = "import sys; from importlib.util import find_spec; sys.exit(find_spec(sys.argv[1]) is None)"
    return subprocess.run([python, "-c", code, package]).returncode == 0


def prepare(folder: Path, pictures: int, peers: str, dvc: bool) -> None:
    """The project for all three tools; what is there already stays."""
    if (folder / "say.py").exists():
        return
    print(f"drawing {pictures} pictures in {folder}", flush=True)
    draw_pictures(folder / "pictures", pictures)
    save_base(folder / "tiny.safetensors")
    (folder / "doit").mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (folder / "dodo.py").write_text(DODO, encoding="utf-8")
    (folder / "dvc.yaml").write_text(DVC.format(python=peers), encoding="utf-8")
    if dvc:
        run([peers, "-m", "dvc", "init", "--no-scm", "--quiet"], folder)
        for option in ("core.analytics", "core.check_update"):  # neither belongs into a measurement
            run([peers, "-m", "dvc", "config", option, "false"], folder)
    (folder / "say.py").write_text('print("training starts", flush=True)\n', encoding="utf-8")


def show(tools: dict[str, Tool], first: dict[str, float], pictures: int, peers: str, quick: bool) -> None:
    rows = []
    for case, what in (("null", "nothing changed"), ("edit", "one caption edited, until training starts")):
        rows.append(
            [what, *(f"{tool.series[case].median:.2f} s" for tool in tools.values()), f"<= {TARGETS[case]:.1f} s"]
        )
    print(f"\n{pictures} pictures, medians of {len(tools['lorac'].series['null'].seconds)}, whole processes\n")
    print(table(["", *tools, "target"], rows))
    seconds = {name: {case: series.facts() for case, series in tool.series.items()} for name, tool in tools.items()}
    facts = {
        "pictures": pictures,
        "seconds": seconds,
        "first_build_seconds": first,
        "targets": TARGETS,
        "machine": machine(),
        "versions": {
            **versions(["lorac", "msgspec", "click"]),
            **versions([name.lower() for name in tools if name != "lorac"], peers),
        },
        "commit": commit(),
    }
    print(f"\nwritten to {write_result('null_build_quick' if quick else 'null_build', facts)}")
    print(json.dumps(facts["machine"], ensure_ascii=False))


if __name__ == "__main__":
    main()
