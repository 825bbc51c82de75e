"""What was measured on cards, as the Markdown of benchmarks/README.md; `tables.py` puts it there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

Case = Mapping[str, Any]
UNMEASURED = "Not measured yet: `bash benchmarks/gpu.sh` on a machine with an NVIDIA card fills this in."
ENDING = "-cuda"


def cuda(results: Path = RESULTS) -> str:
    """All tables, card by card."""
    found = {name: _cases(results / f"{name}.json") for name in PARTS}
    cards = sorted({_card(case) for cases in found.values() for case in cases.values()})
    if not cards:
        return UNMEASURED
    lines: list[str] = []
    for card in cards:
        lines += [f"### {card}", ""]
        for name, rows in PARTS.items():
            own = {key: case for key, case in found[name].items() if _card(case) == card}
            for key, case in own.items():
                lines += [*rows(key, case), ""]
    return "\n".join(lines).rstrip()


def _cases(path: Path) -> dict[str, Case]:
    """By name without the ending."""
    held: dict[str, Case] = json.loads(path.read_text("utf-8")).get("cases", {}) if path.exists() else {}
    return {name.removesuffix(ENDING): case for name, case in held.items() if name.endswith(ENDING)}


def _card(case: Case) -> str:
    facts = case.get("card", {})
    driver = f", driver {facts['driver']}" if facts.get("driver") else ""
    return f"{facts.get('name', 'a card')}{driver}, torch {case['versions']['torch']}, commit {case['commit']}"


def _step(name: str, case: Case) -> Iterator[str]:
    yield f"A training step, `{name}`:"
    yield ""
    yield from _head("", "ms", "steps/s", "share of the GEMM rate")
    for who, times in case["seconds"].items():
        share = case.get("share", {}).get(who)
        if who != "matrix product":
            yield _row(who, f"{times['median'] * 1e3:.1f}", f"{1 / times['median']:.1f}", _percent(share))
    yield ""
    compiled = f", and {case['ratio_compiled']:.2f} × those under torch.compile" if "ratio_compiled" in case else ""
    yield f"lorac makes {case['ratio']:.2f} × the steps of diffusers + PEFT{compiled}."


def _gang(name: str, case: Case) -> Iterator[str]:
    together = case["count"] / case["seconds"]["together"]["median"]
    share = f", {_percent(case['share'])} of the GEMM rate" if "share" in case else ""
    yield f"{case['count']} LoRAs together, `{name}`: {together:.1f} LoRA-steps/s{share}; {case['ratio']:.2f} ×"
    yield "one after another."


def _tiers(name: str, case: Case) -> Iterator[str]:
    yield f"{case['steps']} steps under a limit of memory, `{name}`:"
    yield ""
    figures = ("predicted", "allocated", "reserved")
    yield from _head("limit", "batch", "trained", "computed again", *figures, "error", "held")
    for row in case["rows"]:
        what = "U-Net and text encoder" if row["text"] else "U-Net"
        sizes = (f"{row[key] / 2**30:.2f} GiB" if key in row else "" for key in figures)
        how = row["recompute"].replace("_", " ") if "recompute" in row else row.get("said", "").replace("|", "/")
        error = f"{row['error']:+.1%}" if "error" in row else ""
        held = "yes" if row["held"] else "no"
        yield _row(f"{row['gib']} GiB", str(row["batch"]), what, how, *sizes, error, held)


def _attention(name: str, case: Case) -> Iterator[str]:
    kernels = list(dict.fromkeys(kernel for row in case["rows"] for kernel in row["ms"]))
    yield f"Attention, ms forward + backward, {case['heads']} heads, `{name}`:"
    yield ""
    yield from _head("queries × keys", "channels", "batch", *kernels, "best", "auto")
    for row in case["rows"]:
        times = (row["ms"].get(kernel) for kernel in kernels)
        shown = [f"{ms[0]:.3f} + {ms[1]:.3f}" if ms else "" for ms in times]
        what = (f"{row['tokens']} × {row['keys']}", str(row["channels"]), str(row["batch"]))
        yield _row(*what, *shown, row["best"], row["auto"])


def _deterministic(name: str, case: Case) -> Iterator[str]:
    equal = "the same bits" if case["equal"] else "NOT the same bits"
    yield f"`deterministic = true`, `{name}`: {case['steps']} steps twice give {equal}, at {case['ratio']:.2f} × the"
    yield "steps/s."


def _profile(name: str, case: Case) -> Iterator[str]:
    yield f"One step, `{name}`: {case['step_ms']:.1f} ms, {case['busy_ms']:.1f} ms of it in {case['calls']} kernels:"
    yield ""
    yield from _head("kind", "share of the kernels' time")
    yield from (_row(kind, _percent(share)) for kind, share in case["kinds"].items())


def _kernels(name: str, case: Case) -> Iterator[str]:
    yield f"Kernels of lorac, `{name}`:"
    yield ""
    keys = list(dict.fromkeys(key for facts in case["kernels"].values() for key in facts))
    yield from _head("kernel", *keys)
    for kernel, facts in case["kernels"].items():
        yield _row(kernel, *(str(facts.get(key, "")) for key in keys))


PARTS: Mapping[str, Callable[[str, Case], Iterator[str]]] = {
    "step": _step,
    "gang": _gang,
    "tiers": _tiers,
    "kernels": _kernels,
    "attention": _attention,
    "deterministic": _deterministic,
    "profile_step": _profile,
}
"""By the file that has the cases, in the order of the page."""


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
