"""Writes the tables of README.md and benchmarks/README.md from the JSON of benchmarks/results.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.figures import FIGURES
from benchmarks.floors import load
from benchmarks.gpu_tables import cuda

SWITCHES = {
    "fused": "backward written out, and only what it needs is kept",
    "joined": "q, k, v and all keys and values from one product",
    "winograd": "3×3 convolutions by Winograd's minimal filtering",
    "beside": "a helper thread",
    "keep_memory": "the C library keeps what is freed",
    "tape": "steps recorded once and played back",
    "graphs": "passes are launched as CUDA graphs",
    "text_states": "text states computed once",
}


def speed(results: Path = RESULTS) -> str:
    """README's table: what was measured, and where."""
    rows = []
    for figure in FIGURES:
        value = figure.value(results)
        if value is not None and figure.target is not None:
            rows.append(f"| {figure.words} | {figure.written(value)} |")
    return "\n".join(["| | measured |", "|---|---|", *rows])


def targets(results: Path = RESULTS) -> str:
    """The same with targets, floors, machines and commits."""
    limits, rows = load(), []
    for figure in FIGURES:
        value, case = figure.value(results), figure.case(results)
        where = f"{case['machine']['cpu']}, {case['commit']}" if case else ""
        limit = limits.get(figure.key)
        cells = ["not measured" if value is None else figure.written(value), figure.goal]
        cells += ["" if limit is None else f"{limit:g}", where, f"[{figure.path[0]}](results/{figure.path[0]}.json)"]
        rows.append(f"| {figure.words} | {' | '.join(cells if case else [*cells[:-1], ''])} |")
    return "\n".join(["| | measured | target | floor | machine, commit | |", "|---|---|---|---|---|---|", *rows])


def ablation(results: Path = RESULTS) -> str:
    """How much slower a step is without each optimisation."""
    path = results / "ablation.json"
    cases: dict[str, Any] = json.loads(path.read_text("utf-8"))["cases"] if path.exists() else {}
    rows = []
    for name, case in cases.items():
        size, px, *card, switch = name.split("-")
        ratio = f"{case['ratio']:.2f} ×"
        rows.append(
            f"| {', '.join([size, f'{px} px', *card])} | `{switch}` | {SWITCHES[switch]} | {ratio} | {case['commit']} |"
        )
    return "\n".join(["| size | switch | what | a step's time without it | commit |", "|---|---|---|---|---|", *rows])


def memory(results: Path = RESULTS) -> str:
    """What fits which card, by the planner's prediction, and how right that is."""
    path = results / "memory.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows = ["| card | trained, 512 px, dim 128 | batch | in how many passes | computed again | predicted peak |"]
    rows.append("|---|---|---|---|---|---|")
    for tier in found.get("tiers", []):
        what = "U-Net and text encoder" if tier["text"] else "U-Net"
        start = f"| {tier['gib']} GiB | {what} | {tier['batch']}"
        if not tier["fits"]:
            rows.append(f"{start} | does not fit | | |")
            continue
        level = tier["recompute"].replace("_", " ") + ("; text encoder on the CPU" if tier["away"] else "")
        rows.append(f"{start} | {tier['split']} | {level} | {tier['total'] / 2**30:.2f} GiB |")
    for name, errors in found.get("errors", {}).items():
        rows += ["", f"Prediction, {name}: {errors['steps']} steps, error at most {abs(errors['largest']):.1%}, median"]
        rows[-1] += f" {errors['median']:.2%}."
    return "\n".join(rows)


OWN = Path(__file__).parent / "README.md"
PLACES = (
    (ROOT / "README.md", "speed", speed),
    (OWN, "targets", targets),
    (OWN, "ablation", ablation),
    (OWN, "memory", memory),
    (OWN, "cuda", cuda),
)


def filled(text: str, name: str, made: str) -> str:
    """The text with `made` between its markers; unchanged where it has none."""
    begin, end = f"<!-- {name}: written by python -m benchmarks.tables -->\n", f"\n<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    if not found:
        return text
    return before + begin + made + end + rest.partition(end)[2]


def main() -> None:
    """Fill in all tables."""
    for path, name, make in PLACES:
        path.write_text(filled(path.read_text("utf-8"), name, make()), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {name}")


if __name__ == "__main__":
    main()
