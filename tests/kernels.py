"""How close a kernel comes to its definition in float64, for the tests of `kernels`."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES = [(torch.float32, 2e-6), (torch.float16, 6e-4), (torch.bfloat16, 8e-3)]
"""Of the largest value. A kernel computes in float32 and rounds once, when it stores: by half a unit in the last place
(2⁻¹¹ of float16), but for bfloat16 in Triton's interpreter, which cuts off (2⁻⁷)."""


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Both finite, and no element further off than `tolerance` times the largest."""
    assert found.shape == wanted.shape
    found = found.detach().cpu().double()
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
