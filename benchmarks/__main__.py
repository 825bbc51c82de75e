"""The benchmarks that `make bench` runs: on two cores, in under fifteen minutes.

    python -m benchmarks [--full] [--only NAME] [--list]

Each is a process of its own, writes its figures with machine, versions and commit into benchmarks/results, and prints
what it found. At the end the ratios measured in this run are compared with benchmarks/floors.toml; the exit code is 1
if one is worse, or if a benchmark failed. `--full` adds those that take longer: larger batches, the whole demo build,
the null build of 10,000 pictures, and what each optimisation brings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.common import ROOT, environment, pin
from benchmarks.figures import of_cases
from benchmarks.floors import load, problems, report


@dataclass(frozen=True)
class Job:
    """`module` with arguments; `seconds` is what it took on two cores of an AMD EPYC; `cases` are what it measures."""

    module: str
    arguments: str
    seconds: int
    cases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.module} {self.arguments}".strip()


QUICK = (
    Job("step", "--size mini --rounds 10", 60, ("mini-128-b1",)),
    Job("gang", "--size mini --count 5 --rounds 6", 50, ("mini-128-n5",)),
    Job("edit_caption", "--quick", 50, ("mini",)),
    Job("null_build", "--quick", 40),
    Job("demo", "--steps 100", 60, ("shortened",)),
    Job("step", "--size full --px 256 --rounds 2", 75, ("full-256-b1",)),
    Job("step", "--size full --px 256 --rounds 1 --own", 75, ("full-256-b1-own",)),
    Job("gang", "--size full --px 128 --count 5 --rounds 2", 80, ("full-128-n5",)),
    Job("saved", "--px 512", 90, ("full-512-b1",)),
    Job("step", "--size full --px 512 --rounds 1", 130, ("full-512-b1",)),
)
FULL = (
    Job("step", "--size full --px 512 --rounds 2 --own", 400, ("full-512-b1-own",)),
    Job("gang", "--size mini --count 2", 40, ("mini-128-n2",)),
    Job("gang", "--size full --px 128 --count 2", 80, ("full-128-n2",)),
    Job("gang", "--size full --px 256 --count 5 --rounds 2", 150, ("full-256-n5",)),
    Job("step", "--size full --px 256 --batch 4 --rounds 2", 150, ("full-256-b4",)),
    Job("step", "--size full --px 512 --batch 4 --rounds 1", 500, ("full-512-b4",)),
    Job("demo", "", 150, ("whole",)),
    Job("null_build", "", 300),
    Job("ablation", "--size mini", 200),
    Job("ablation", "--size full --px 256", 500),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="also those that take longer")
    parser.add_argument("--only", metavar="NAME", help="those whose name holds NAME")
    parser.add_argument("--threads", type=int, default=2, help="cores that are used")
    parser.add_argument("--list", action="store_true", help="say what would run")
    options = parser.parse_args()
    jobs = [job for job in QUICK + FULL * options.full if options.only is None or options.only in job.name]
    if options.list:
        for job in jobs:
            print(f"{job.seconds:5} s  {job.name}")
        return
    pin(options.threads)
    failed = run(jobs)
    limits = problems(of_cases((job.module, case) for job in jobs for case in job.cases), load())
    report([*(f"{name}: failed, see above" for name in failed), *limits])


def run(jobs: list[Job]) -> list[str]:
    """Run them one after the other; returns the names of those that failed."""
    failed = []
    started, planned = time.monotonic(), sum(job.seconds for job in jobs)
    left = planned
    for number, job in enumerate(jobs, 1):
        slower = (time.monotonic() - started) / max(planned - left, 1) if number > 1 else 1
        print(f"\n[{number}/{len(jobs)}] {job.name}: about {left * slower / 60:.0f} min left", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{job.module}", *job.arguments.split()]
        if subprocess.run(command, cwd=ROOT, env=environment()).returncode:
            failed.append(job.name)
        left -= job.seconds
    print(f"\n{len(jobs)} benchmarks in {(time.monotonic() - started) / 60:.1f} min", flush=True)
    return failed


if __name__ == "__main__":
    main()
