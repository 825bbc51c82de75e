"""Where the time of one training step goes: its kernels by kind, and the longest of them.

    python -m benchmarks.profile_step --size full --px 512 --device cuda [--batch 1] [--count 1]

torch's profiler over one step that is like those before it. On a card the time is that of the kernels, and what is
missing to the step's own time is idleness; on a CPU it is the time of operations without those that they call.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import WARM, keep, table
from benchmarks.models import SIZES, draw
from benchmarks.ours import LoracStep

KINDS = {
    "optimiser": r"adam|multi_tensor|foreach",
    "attention": r"flash|fmha|attention|softmax",
    "convolution": r"conv|fprop|dgrad|wgrad|winograd|im2col|implicit",
    "norms": r"norm|moments|rowwise",
    "GEMM": r"gemm|gemv|splitk|nvjet|cublas|cutlass|lora_|\b(aten::)?(add|badd)?b?mm_?\b",
    "copies": r"memcpy|memset|copy|clone|fill|zero|cat\b|catarray|aten::(stack|slice|select)",
    "elementwise": r"elementwise|vectorized|reduce|geglu|gelu|silu|sigmoid|noise|loss|triton"
    r"|aten::(add|sub|mul|div|addc|exp|sum|mean|rsqrt|sqrt|pow|neg)",
}
"""By parts of names, the first that fits: names of CUDA's libraries, of torch's kernels, of lorac's own, and of torch's
operations."""
TOP = 20
WARM_CUDA = 5


class Kernel(NamedTuple):
    """All calls of one kernel or operation in the step."""

    name: str
    calls: int
    ms: float


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--px", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="LoRAs trained together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = SIZES[options.size]
    px = options.px or size.px
    step = LoracStep(draw(size, options.device), px, options.batch, options.count)
    warm = WARM_CUDA if options.device == "cuda" else WARM[size.name]
    for index in range(warm):
        step(index)
    step.finish()
    kernels, seconds = profiled(step, warm, options.device)
    facts = facts_of(kernels, seconds)
    if options.json:
        print(json.dumps(facts))
        return
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in facts["kinds"].items())
    print(f"{facts['step_ms']:.1f} ms, of which {facts['busy_ms']:.1f} in {facts['calls']} kernels: {shares}")
    rows = [[k["name"][:90], k["kind"], str(k["calls"]), f"{k['ms']:.3f}"] for k in facts["top"]]
    print(table(["kernel", "kind", "calls", "ms"], rows))
    case = f"{size.name}-{px}-b{options.batch}-n{options.count}" + ("-cuda" if options.device == "cuda" else "")
    keep("profile_step", case, facts, ["torch"])


def profiled(step: LoracStep, index: int, device: str) -> tuple[list[Kernel], float]:
    """The kernels of a step, the longest first, and the seconds of the step after it, which is not profiled."""
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as found:
        step(index)
        step.finish()
        if cuda:
            torch.cuda.synchronize()
    started = time.perf_counter()
    step(index + 1)
    step.finish()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    events: Any = [e for e in found.key_averages() if e.device_type == wanted and not e.is_user_annotation]
    micro = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = (Kernel(event.key, event.count, getattr(event, micro) / 1e3) for event in events)
    return sorted((k for k in kernels if k.ms > 0), key=lambda kernel: -kernel.ms), seconds


def kind_of(name: str) -> str:
    """One of KINDS, or "other"."""
    return next((kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE)), "other")


def facts_of(kernels: Iterable[Kernel], seconds: float) -> dict[str, Any]:
    """What the JSON says: times, shares of the time of all kernels by kind, and the longest kernels."""
    found = list(kernels)
    busy = sum(kernel.ms for kernel in found)
    kinds: dict[str, float] = {}
    for kernel in found:
        kind = kind_of(kernel.name)
        kinds[kind] = kinds.get(kind, 0.0) + kernel.ms / busy
    return {
        "step_ms": round(seconds * 1e3, 3),
        "busy_ms": round(busy, 3),
        "calls": sum(kernel.calls for kernel in found),
        "kinds": {kind: round(share, 4) for kind, share in sorted(kinds.items(), key=lambda pair: -pair[1])},
        "top": [{**kernel._asdict(), "kind": kind_of(kernel.name)} for kernel in found[:TOP]],
    }


if __name__ == "__main__":
    main()
