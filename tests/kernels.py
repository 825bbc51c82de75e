"""What tests of `kernels` share: how close a kernel comes to its definition in float64, and a faster interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
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


def watch_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter reads and writes wherever a kernel points. From now on, only in the tensors of its launch."""
    from triton.runtime import interpreter

    launched: list[Any] = []
    init, load, store = (
        interpreter.GridExecutor._init_args_hst,
        interpreter.InterpreterBuilder.create_masked_load,
        interpreter.InterpreterBuilder.create_masked_store,
    )

    def start(self: Any, given: Any, named: Any) -> Any:
        there = init(self, given, named)
        launched[:] = [x.untyped_storage() for x in (*there[0], *there[1].values()) if isinstance(x, Tensor)]
        return there

    def check(pointers: Any, mask: Any) -> None:
        at = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(at.shape, bool)
        for storage in launched:
            inside |= (at >= storage.data_ptr()) & (at + size <= storage.data_ptr() + storage.nbytes())
        assert inside.all(), "a kernel left the tensors of its launch"

    def checked_load(self: Any, pointers: Any, mask: Any, *more: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *more)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *more: Any) -> Any:
        check(pointers, mask)
        assert value.data.itemsize * 8 == pointers.get_element_ty().primitive_bitwidth
        assert value.data.size == pointers.data.size == mask.data.size
        return store(self, pointers, value, mask, *more)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", start)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", checked_store)


_PREPARED: set[Any] = set()
