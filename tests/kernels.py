"""What tests of `kernels` share: how close a kernel comes to its definition in float64, and a faster interpreter."""

from __future__ import annotations

from typing import Any

import pytest
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


def hasten_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a kernel calls a function, Triton's interpreter prepares the language anew, for 20 ms every time; once for
    each function is enough, since what a launch prepares holds for all that it calls."""
    from triton.runtime import interpreter

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if self.fn not in _PREPARED:
            interpreter._patch_lang(self.fn)
            _PREPARED.add(self.fn)
        return self.rewrite()(*given, **named)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


_PREPARED: set[Any] = set()
