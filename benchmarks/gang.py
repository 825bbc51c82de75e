"""LoRAs trained together against the same LoRAs one after another, in LoRA-steps per second.

    python -m benchmarks.gang --size mini --count 5
    python -m benchmarks.gang --size full --px 128 --count 5

One trainer of `count` LoRAs and one trainer of a single LoRA, of the same random weights, in one process, in turns,
batch 1 for each LoRA. One after another takes `count` steps of the single one, so the ratio is `count` times the time
of its step over that of a step of the gang: the median over rounds.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import alternate, keep, peak_bytes, pin, table, times
from benchmarks.models import SIZES, draw
from benchmarks.ours import LoracStep

GANG, ALONE = "together", "alone"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--px", type=int)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="by default 10 (mini) or 3 (full)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    pin(options.threads)
    torch.set_num_threads(options.threads)
    size, count = SIZES[options.size], options.count
    px = options.px or size.px
    models = draw(size, options.device)
    other = models.again()
    contestants = {GANG: LoracStep(models, px, 1, count), ALONE: LoracStep(other, px, 1)}
    rounds, steps = {"full": (3, 1), "mini": (10, 4)}[size.name]
    series = alternate(contestants, options.rounds or rounds, steps)
    ratio = count * times(series, ALONE, GANG)
    rows = [[f"{count} LoRAs together", f"{series[GANG].median * 1e3:.0f}", f"{count / series[GANG].median:.2f}"]]
    rows += [["one after another", f"{series[ALONE].median * 1e3:.0f}", f"{1 / series[ALONE].median:.2f}"]]
    print(table([f"{size.name}, {px} px", "median ms a step", "LoRA-steps/s"], rows))
    print(f"together they make {ratio:.2f} times the steps")
    facts = {
        "ratio": round(ratio, 3),
        "count": count,
        "threads": options.threads,
        "peak_bytes": peak_bytes(options.device),
        "seconds": {name: s.facts() for name, s in series.items()},
    }
    device = "-cuda" if options.device == "cuda" else ""
    keep("gang", f"{size.name}-{px}-n{count}{device}", facts, ["torch"])


if __name__ == "__main__":
    main()
