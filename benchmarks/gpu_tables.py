"""What was measured on cards, as the Markdown of benchmarks/README.md; `tables.py` puts it there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorac.kernels import gate

from benchmarks.common import RESULTS

Case = Mapping[str, Any]
UNMEASURED = "Not measured yet: `bash benchmarks/gpu.sh` on a machine with an NVIDIA card fills this in."
ENDING = "-cuda"
STEPS = 2808
"""Of the article's first run."""


def cuda(results: Path = RESULTS) -> str:
    """All tables, card by card."""
    found = {name: _cases(results / f"{name}.json") for name in PARTS}
    cards = sorted({_card(case) for cases in found.values() for case in cases.values()})
    if not cards:
        return UNMEASURED
    lines: list[str] = []
    for card in cards:
        lines += [f"### {card}", ""]
        own = {name: {key: c for key, c in cases.items() if _card(c) == card} for name, cases in found.items()}
        lines += [*_targets(own), ""]
        for name, rows in PARTS.items():
            for key, case in own[name].items():
                lines += [*rows(key, case), ""]
    return "\n".join(lines).rstrip()


def _targets(own: Mapping[str, Mapping[str, Case]]) -> Iterator[str]:
    """What an H100 is to reach, at 512 px and rank 128."""
    step, large, gang = own["step"].get("full-512-b1"), own["step"].get("full-512-b8"), own["gang"].get("full-512-n5")
    kernels = own["kernels"].get("full-512", {}).get("kernels", {}).items()
    used = [facts for kernel, facts in kernels if kernel.split()[0] not in gate.UNUSED]
    shares = [part for part in (large and large["share"]["lorac"], gang and gang.get("share")) if part]
    eager, compiled = ([k[key] for k in used if k.get(key)] for key in ("over_eager", "over_compiled"))
    whole = own["whole"].get("full-lr0.0001")
    done = whole and not whole["exit_code"] and whole["steps"] == STEPS
    rows = {
        "batch 1: steps/s over diffusers + PEFT": (step and f"{step['ratio']:.2f} ×", "≥ 3 ×"),
        "batch 1: steps/s": (step and f"{1 / step['seconds']['lorac']['median']:.1f}", "≥ 60"),
        "gang of 5: LoRA-steps/s": (gang and f"{5 / gang['seconds']['together']['median']:.1f}", "≥ 120"),
        "share of the GEMM rate, gang of 5 or batch 8": (shares and _percent(max(shares)), "≥ 35%"),
        "the least gain of a kernel over its eager definition": (eager and f"{min(eager):.2f} ×", "≥ 1.5 ×"),
        "… and over the compiled one": (compiled and f"{min(compiled):.2f} ×", "≥ 1 ×"),
        f"{STEPS} steps, from the start to the file": (whole and done and f"{whole['seconds']:.0f} s", "≤ 90 s"),
    }
    yield from _head("512 px, rank 128", "measured", "target on an H100")
    yield from (_row(what, measured or "not measured", target) for what, (measured, target) in rows.items())


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
        batch = f"{row['batch']}, {row['shapes']} shapes" if row.get("shapes", 1) > 1 else str(row["batch"])
        yield _row(f"{row['gib']} GiB", batch, what, how, *sizes, error, held)


def _attention(name: str, case: Case) -> Iterator[str]:
    kernels = list(dict.fromkeys(kernel for row in case["rows"] for kernel in row["ms"]))
    yield f"Attention, ms forward + backward, `{name}`; that of the text encoder, of 77 tokens, is causal:"
    yield ""
    yield from _head("queries × keys", "heads · channels", "batch", *kernels, "best", "auto")
    for row in case["rows"]:
        times = (row["ms"].get(kernel) for kernel in kernels)
        shown = [f"{ms[0]:.3f} + {ms[1]:.3f}" if ms else "" for ms in times]
        what = (f"{row['tokens']} × {row['keys']}", f"{row['heads']} · {row['channels']}", str(row["batch"]))
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


def _whole(name: str, case: Case) -> Iterator[str]:
    ended = f"exit code {case['exit_code']}: {case['said']}" if case["exit_code"] else f"{case['seconds']:.0f} s"
    yield f"`lorac build` of {case['steps']} steps with learning rate {case['rate']:g}, `{name}`: {ended}."


def _parity(name: str, case: Case) -> Iterator[str]:
    errors = ", ".join(f"{what} {error:.1e}" for what, error in case["relative_errors"].items())
    yield f"The step on the card against that on the CPU, relative errors, `{name}`: {errors}."


def _ablation(name: str, case: Case) -> Iterator[str]:
    size, px, thing = name.split("-")
    word = "with" if case["with"] else "without"
    yield f"A step of {size}, {px} px, {word} `{thing}` takes {case['ratio']:.2f} × the time."


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
    "ablation": _ablation,
    "whole": _whole,
    "parity_cuda": _parity,
}
"""By the file that has the cases, in the order of the page."""


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
