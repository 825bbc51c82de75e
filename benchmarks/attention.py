"""Which kernel computes attention quickest at SD1.5's sizes, forward and backward.

    python -m benchmarks.attention

Heads of 40, 80 and 160 channels at 4096, 1024, 256 and 64 tokens (512 px): self-attention, and that to captions of one,
two and three chunks (77, 152 and 227 states; 154 and 231 where the ends of chunks are kept); and that of the text
encoder. In float16, for 1 and 5 pictures. A kernel that a card does not have, or whose numbers are not those of torch's
own choice, is left out. What `[train] attention = "auto"` would take is in the JSON too. Only a card has kernels to
choose from; on a CPU it can be tried with --device cpu --size mini.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.common import keep, table
from lorac.train.fused.backends import KERNELS, Size, candidates, elapsed, milliseconds, numbers, timed

LEVELS = {"full": ((4096, 40), (1024, 80), (256, 160), (64, 160)), "mini": ((16, 8),)}
"""(tokens, channels of a head) of the levels of the U-Net."""
KEYS = {"full": (77, 152, 154, 227, 231), "mini": (7,)}
HEADS, BATCHES = 8, (1, 5)
TEXT = {"full": (77, 12, 64), "mini": (7, 4, 16)}
"""(tokens, heads, channels of a head) of the text encoder, whose attention is causal."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--size", choices=LEVELS, default="full")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    case = options.size + ("-cuda" if options.device == "cuda" else "")
    rows: list[dict[str, Any]] = []
    facts = {"rows": rows}
    for size in sizes(options.size, torch.device(options.device)):
        rows.append(measured(size))
        if not options.json:  # now and not at the end: there may be no time for all
            keep("attention", case, facts, ["torch", "xformers"])
    print(json.dumps(facts) if options.json else _table(rows))


def sizes(size: str, device: torch.device) -> Iterator[Size]:
    """All that are measured."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    for batch in BATCHES:
        for tokens, channels in LEVELS[size]:
            for keys in (tokens, *KEYS[size]):
                yield Size(batch, HEADS, tokens, keys, channels, dtype, device)
        tokens, heads, channels = TEXT[size]
        yield Size(batch, heads, tokens, tokens, channels, dtype, device, causal=True)


def measured(size: Size) -> dict[str, Any]:
    """Milliseconds of each kernel, [forward, backward], and which is quickest."""
    both = timed(size, KERNELS)
    forward = {name: _forward(name, size) for name in both}
    tried = {name: both[name] for name in candidates(size) if name in both}
    return {
        "heads": size.heads,
        "tokens": size.queries,
        "keys": size.keys,
        "channels": size.channels,
        "batch": size.batch,
        "causal": size.causal,
        "ms": {name: [round(forward[name], 4), round(both[name] - forward[name], 4)] for name in both},
        "best": min(both, key=both.__getitem__),
        "auto": min(tried, key=tried.__getitem__),
    }


def _forward(name: str, size: Size) -> float:
    q, k, v = (x.detach().requires_grad_() for x in numbers(size))
    milliseconds(name, q, k, v, size.causal)  # warm
    return elapsed(lambda: KERNELS[name](q, k, v, size.causal), size.device)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    names = [name for name in KERNELS if any(name in row["ms"] for row in rows)]
    cells = []
    for row in rows:
        what = f"{row['tokens']}×{row['keys']}, {row['heads']}·{row['channels']}, batch {row['batch']}"
        times = (row["ms"].get(name) for name in names)
        cells.append([what, *("-" if ms is None else f"{ms[0]:.3f} + {ms[1]:.3f}" for ms in times), row["best"]])
    return table(["ms forward + backward", *names, "best"], cells)


if __name__ == "__main__":
    main()
