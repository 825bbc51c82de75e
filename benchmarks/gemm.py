"""The machine's rate, as a float32 (on CUDA float16) matrix product reaches it: what a step's share is measured by."""

from __future__ import annotations

import torch

SIDE = {"cpu": 2048, "cuda": 8192}
TIMES = 4


class Gemm:
    """Products of squares into memory that is kept. `flops` are the operations of a call."""

    def __init__(self, device: str = "cpu") -> None:
        side, dtype = SIDE[device], torch.float16 if device == "cuda" else torch.float32
        self.a, self.b, self.c = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        self.flops = 2 * side**3 * TIMES

    def __call__(self, _: int) -> object:
        for _ in range(TIMES):
            torch.mm(self.a, self.b, out=self.c)
        return self.c[0, 0].item()

    def finish(self) -> None:
        """Nothing is left to do."""
