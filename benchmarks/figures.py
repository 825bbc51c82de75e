"""The figures that lorac is judged by: where the JSON has them, what they are to reach, how they are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS


@dataclass(frozen=True)
class Figure:
    """One number of `results/FILE.json`: `path` is the file's stem, the case, and the keys below.

    `target` is issue 5's, None for a figure that is only watched. `at_most`: less is better. `unit` is how it is
    written: "×", "%" or "s". Seconds are not compared with floors: they are the machine's as much as lorac's.
    """

    key: str
    words: str
    path: tuple[str, ...]
    target: float | None
    unit: str = "×"
    at_most: bool = False

    @property
    def file(self) -> str:
        return f"benchmarks/results/{self.path[0]}.json"

    @property
    def compared(self) -> bool:
        return self.unit != "s"

    def case(self, results: Path = RESULTS) -> dict[str, Any] | None:
        """The facts of its case, if it was measured."""
        path = results / f"{self.path[0]}.json"
        if not path.exists():
            return None
        found: dict[str, Any] | None = json.loads(path.read_text("utf-8")).get("cases", {}).get(self.path[1])
        return found

    def value(self, results: Path = RESULTS) -> float | None:
        """The number, if it was measured."""
        found: Any = self.case(results)
        for key in self.path[2:]:
            found = found.get(key) if found is not None else None
        return None if found is None else float(found)

    def written(self, value: float) -> str:
        """As a reader sees it."""
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        return f"{value:.2f} {self.unit}" if value < 100 else f"{value:.0f} {self.unit}"

    @property
    def goal(self) -> str:
        """The target as a reader sees it."""
        if self.target is None:
            return ""
        return f"{'≤' if self.at_most else '≥'} {self.written(self.target)}"


def _step(px: int, own: str = "") -> tuple[str, ...]:
    return "step", f"full-{px}-b1{own}", "ratio"


OWN = "steps/s over diffusers + PEFT, each started as its users do"
SAME = "steps/s over diffusers + PEFT, in one process with one allocator"

FIGURES = (
    Figure("step-full-512-own", f"SD1.5's size, 512 px: {OWN}", _step(512, "-own"), 1.6),
    Figure("step-full-512", f"SD1.5's size, 512 px: {SAME}", _step(512), 1.3),
    Figure(
        "share-full-512",
        "SD1.5's size, 512 px: share of the GEMM rate",
        ("step", "full-512-b1", "share", "lorac"),
        0.65,
        "%",
    ),
    Figure("step-full-256-own", f"SD1.5's size, 256 px: {OWN}", _step(256, "-own"), 1.8),
    Figure("step-full-256", f"SD1.5's size, 256 px: {SAME}", _step(256), 1.3),
    Figure(
        "saved-full-512",
        "SD1.5's size, 512 px: activations kept for backward, over diffusers + PEFT",
        ("saved", "full-512-b1", "ratio"),
        0.55,
        at_most=True,
    ),
    Figure("step-mini", "`builtin:mini`: steps/s over diffusers + PEFT", ("step", "mini-128-b1", "ratio"), 2.5),
    Figure(
        "gang-mini", "5 LoRAs together over one after another, `builtin:mini`", ("gang", "mini-128-n5", "ratio"), 2.0
    ),
    Figure(
        "gang-full-128",
        "5 LoRAs together over one after another, SD1.5's size, 128 px",
        ("gang", "full-128-n5", "ratio"),
        1.7,
    ),
    Figure(
        "gang-full-256",
        "5 LoRAs together over one after another, SD1.5's size, 256 px",
        ("gang", "full-256-n5", "ratio"),
        1.3,
    ),
    Figure("demo", "the demo build, 2808 steps", ("demo", "whole", "seconds"), 120, "s", at_most=True),
    Figure(
        "edit",
        "caption edit to first training step, 60 pictures",
        ("edit_caption", "mini", "median"),
        3.0,
        "s",
        at_most=True,
    ),
    Figure(
        "edit-over-import",
        "caption edit to first training step, over a bare `import torch`",
        ("edit_caption", "mini", "over_import"),
        None,
        at_most=True,
    ),
)


def of_cases(cases: Iterable[tuple[str, str]]) -> list[Figure]:
    """The figures that (file, case) pairs hold."""
    wanted = set(cases)
    return [figure for figure in FIGURES if figure.path[:2] in wanted]
