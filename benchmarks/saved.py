"""Memory that a step keeps from forward to backward: lorac beside diffusers + PEFT, SD1.5's size.

    python -m benchmarks.saved [--px 512] [--batch 1]

Both are measured in one way: what torch's allocator has handed out, less what it got back, between the start of a step
and the start of its backward pass, from the profiler's own events. It is the second step, so what lives from step to
step (weights, moments, buffers) does not count on either side; the models, the LoRA and its gradients are the same.
`peak` is the most that was out at once at any time of the step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.common import Contestant, keep, table
from benchmarks.models import SIZES, draw
from benchmarks.ours import LoracStep
from benchmarks.peer import PeftStep
from benchmarks.step import OURS, PACKAGES, PEER

MARK = "backward begins"


def measure(step: Contestant) -> dict[str, int]:
    """Bytes kept when backward begins, and the largest number of bytes at any time, of the second step."""
    step(0)
    step.finish()  # or what lives from step to step is taken in the second
    with _marked(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(1)
    found = profiler.profiler
    assert found is not None
    events = sorted(found.kineto_results.events(), key=lambda event: event.start_ns())
    return totals((event.name(), event.nbytes()) for event in events if event.name() in (MARK, "[memory]"))


def totals(events: Iterator[tuple[str, int]]) -> dict[str, int]:
    """From (name, bytes taken or given back) in order: the sum at the last mark, and the largest sum."""
    held = peak = saved = 0
    for name, size in events:
        if name == MARK:
            saved = held
        else:
            held += size
            peak = max(peak, held)
    return {"saved_bytes": saved, "peak_bytes": peak}


@contextmanager
def _marked() -> Iterator[None]:
    """Mark each call of `torch.autograd.backward`, with which both sides begin backward, in the profile."""
    original: Any = torch.autograd.backward

    def marked(*args: Any, **kwargs: Any) -> None:
        with record_function(MARK):
            pass
        original(*args, **kwargs)

    torch.autograd.backward = marked
    try:
        yield
    finally:
        torch.autograd.backward = original


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--px", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = SIZES[options.size]
    px = options.px or size.px
    models = draw(size)
    found = {PEER: measure(PeftStep(models, px, options.batch)), OURS: measure(LoracStep(models, px, options.batch))}
    rows = [[name, *(f"{value / 2**20:.0f}" for value in facts.values())] for name, facts in found.items()]
    print(table([f"{size.name}, {px} px, batch {options.batch}", "kept MiB", "peak MiB"], rows))
    ratio = found[OURS]["saved_bytes"] / found[PEER]["saved_bytes"]
    print(f"lorac keeps {ratio:.2f} of what diffusers + PEFT keep")
    keep("saved", f"{size.name}-{px}-b{options.batch}", {"ratio": round(ratio, 4), **found}, PACKAGES)


if __name__ == "__main__":
    main()
