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
from benchmarks.gpu_tables import ENDING, cuda

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
    """How much slower a step is without each optimisation, on a CPU."""
    path = results / "ablation.json"
    cases: dict[str, Any] = json.loads(path.read_text("utf-8"))["cases"] if path.exists() else {}
    rows = []
    for name, case in cases.items():
        if name.endswith(ENDING):
            continue
        size, px, switch = name.split("-")
        ratio = f"{case['ratio']:.2f} ×"
        rows.append(f"| {size}, {px} px | `{switch}` | {SWITCHES[switch]} | {ratio} | {case['commit']} |")
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


def paper(results: Path = RESULTS) -> str:
    """Milliseconds of a step by kind of kernel on each card, and steps in a second, computed and not measured."""
    path = results / "paper.json"
    cases: dict[str, Any] = json.loads(path.read_text("utf-8"))["cases"] if path.exists() else {}
    blocks = []
    for name, case in sorted(cases.items()):
        size, px, batch, count = name.split("-")
        cards = list(case["cards"])
        title = f"{size}, {px} px, batch {batch[1:]}, {count[1:]} LoRA{'s' * (count != 'n1')}, ms"
        columns = [f"{card}, {column}" for card in cards for column in ("limit", "usual")]
        rows = [f"| {' | '.join([title, 'kernels', 'MB', 'GFLOP', *columns])} |", "|---" * (4 + len(columns)) + "|"]
        for kind, row in case["kinds"].items():
            cells = [f"{row['kernels']}", f"{row['mb']:.0f}", f"{row['gflop']:.0f}"]
            cells += [f"{ms:.1f}" for card in cards for ms in row["ms"][card].values()]
            rows.append(f"| {' | '.join([kind, *cells])} |")
        speeds = [f"{speed:.1f}" for card in cards for speed in case["cards"][card].values()]
        rows.append(f"| {' | '.join(['**LoRA-steps/s**', '', '', '', *speeds])} |")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


OWN = Path(__file__).parent / "README.md"
PLACES = (
    (ROOT / "README.md", "speed", speed),
    (OWN, "targets", targets),
    (OWN, "ablation", ablation),
    (OWN, "memory", memory),
    (OWN, "paper", paper),
    (OWN, "cuda", cuda),
)


def filled(text: str, name: str, made: str) -> str:
    """The text with `made` between its markers; unchanged where it has none."""
    begin, end = f"<!-- {name}: written by python -m benchmarks.tables -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    if not found:
        return text
    _, closed, after = rest.partition(end)
    assert closed, f"{end} is missing"
    return f"{before}{begin}{made}\n{end}{after}"


def main() -> None:
    """Fill in all tables."""
    for path, name, make in PLACES:
        path.write_text(filled(path.read_text("utf-8"), name, make()), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {name}")


if __name__ == "__main__":
    main()
