"""Compares ratios with the committed floors, or sets the floors from what was measured.

python -m benchmarks.floors          # exit code 1 names each figure that is worse than its floor
python -m benchmarks.floors --set    # writes floors.toml from benchmarks/results: 25 % below what they say
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.figures import FIGURES, Figure

FLOORS = Path(__file__).parent / "floors.toml"
MARGIN = 0.25
"""What noise takes: on a shared machine, ratios of runs of the same code were up to 23 % apart."""
HEAD = """\
# What `make bench` must not fall below (`floor`) or exceed (`ceiling`): ratios, so that they hold on other machines.
# `python -m benchmarks.floors --set` writes this file from benchmarks/results; benchmarks/figures.py says what each is.
"""


def load(path: Path = FLOORS) -> dict[str, float]:
    """Limits by figure."""
    tables = tomllib.loads(path.read_text("utf-8"))
    return {**tables.get("floor", {}), **tables.get("ceiling", {})}


def problems(figures: Iterable[Figure], limits: Mapping[str, float], results: Path = RESULTS) -> list[str]:
    """One line for each figure that is worse than its limit, or that has one and was not measured."""
    found = []
    for figure in figures:
        limit = limits.get(figure.key)
        if limit is None:
            continue
        value, kind = figure.value(results), "ceiling" if figure.at_most else "floor"
        if value is None:
            found.append(f"{figure.key}: {figure.file} has no figure for it; its {kind} is {limit:g}")
        elif value > limit if figure.at_most else not value >= limit:
            found.append(f"{figure.key}: {value:g}, {kind} {limit:g} in {FLOORS.name} ({figure.words}; {figure.file})")
    return found


def written(results: Path = RESULTS) -> str:
    """floors.toml from the results."""
    lines: dict[bool, list[str]] = {False: [], True: []}
    for figure in FIGURES:
        value, case = figure.value(results), figure.case(results)
        if value is None or case is None or not figure.compared:
            continue
        limit = value * (1 + MARGIN if figure.at_most else 1 - MARGIN)
        source = f"{value:g} measured on {case['machine']['cpu']}, {case['commit']}; {MARGIN:.0%} for noise"
        lines[figure.at_most].append(f"{figure.key} = {limit:.2f}  # {source}")
    return "\n".join([HEAD, "[floor]", *lines[False], "", "[ceiling]", *lines[True]]) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--set", action="store_true", help="write floors.toml")
    if parser.parse_args().set:
        FLOORS.write_text(written(), encoding="utf-8")
        print(f"written to {FLOORS}")
        return
    report(problems(FIGURES, load()))


def report(lines: list[str]) -> None:
    """Say how it went; exit with 1 where something is worse than its limit."""
    if lines:
        sys.exit("\n".join(["worse than benchmarks/floors.toml allows:", *lines]))
    print("every ratio is within benchmarks/floors.toml")


if __name__ == "__main__":
    main()
