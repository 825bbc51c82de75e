"""Each kernel over SD1.5's shapes in float16, beside its eager definition and torch.compile's. CUDA only.

    python -m benchmarks.kernels [OPERATION …] [--rounds 5] [--device cuda]

For each: microseconds forward, and forward and backward together; the bytes it must move a second; how often it runs in
the time of the eager definition, and of the compiled one (of an operation's first and last shape: to compile takes
seconds), as the median of rounds in turns. And on paper, what moving
those bytes takes on an RTX 2070 SUPER. Times are of calls captured in a CUDA graph, as the training step runs them, so
what a call costs on the processor does not count. Without a card it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from lorac.kernels import gate

from benchmarks.common import keep, table
from benchmarks.kernel_cases import CASES, Case

RTX_2070_SUPER = 448e9
"""Bytes a second, by its data sheet."""
CALLS = 50
"""In a graph."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operations", nargs="*", metavar="OPERATION", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=["cuda"])
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    gate.UNUSED.clear()  # what training leaves alone is measured too
    measured: dict[str, dict[str, Any]] = {}
    for operation in given.operations or CASES:
        cases = CASES[operation]()
        for case in cases:
            for backward in (False, True) if case.moved_back else (False,):
                name = f"{case.name} {'both ways' if backward else 'forward'}"
                measured[name] = measure(case, backward, given.rounds, case in (cases[0], cases[-1]))
                print(name, measured[name], flush=True)
        # Now and not at the end: there may be no time for all.
        facts = {"device": torch.cuda.get_device_name(0), "dtype": "float16", "kernels": measured}
        keep("kernels", "full-512-cuda", facts, ["torch", "triton"])
    head = ["kernel", "µs", "GB/s", "× eager", "× compiled", "2070 SUPER, µs on paper"]
    print(table(head, [[name, *map(str, figures.values())] for name, figures in measured.items()]))


def measure(case: Case, backward: bool, rounds: int, compiled: bool) -> dict[str, Any]:
    """Figures of one operation and shape; None beside the compiled definition where that is not wanted or not made."""
    graphs = {"own": _graph(case, case.own, backward), "eager": _graph(case, case.definition, backward)}
    try:
        if compiled:
            graphs["compiled"] = _graph(case, torch.compile(case.definition, dynamic=False), backward)
    except Exception as why:  # no compiler for the host, say: the other figures count all the same
        print(f"{case.name}: not compiled: {type(why).__name__}", flush=True)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(_seconds(graph))
    moved = case.bytes_moved(False) + (case.bytes_moved(True) if backward else 0)
    own = statistics.median(times["own"])
    return {
        "microseconds": round(own * 1e6, 2),
        "gb_per_second": round(moved / own / 1e9),
        "over_eager": _times(times["eager"], times["own"]),
        "over_compiled": _times(times["compiled"], times["own"]) if "compiled" in times else None,
        "rtx_2070_super_microseconds": round(moved / RTX_2070_SUPER * 1e6, 1),
    }


def _times(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(slow, fast, strict=True)), 2)


def _graph(case: Case, function: Callable[[torch.Tensor], torch.Tensor], backward: bool) -> torch.cuda.CUDAGraph:
    """`CALLS` calls of a function, and of its gradient if asked for, after some that warm up."""
    x = case.input("cuda")
    with torch.no_grad():
        dy = torch.randn_like(function(x))

    def call() -> None:
        if backward:
            torch.autograd.grad(function(x), x, dy)
        else:
            with torch.no_grad():
                function(x)

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one call."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()
    started.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    milliseconds: float = started.elapsed_time(ended)
    return milliseconds / 1e3 / CALLS


if __name__ == "__main__":
    main()
