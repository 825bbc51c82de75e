"""The bytes of all tensors that are alive, operation by operation, and the most there ever were.

On torch's "meta" device, or in its FakeTensorMode, nothing is computed: a step of full size takes seconds. Counted
is what torch's operations return: scratch memory within an operation is not.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`now` and `peak` in bytes, of the storages made since the mode was entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.largest: dict[int, int] = {}
        """The storages that are alive, by id, with their bytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and _is_empty(args[0]):
            return 1.0  # a fake tensor has no value; the step only asks for a gradient's norm and a clipping factor
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def restart(self) -> int:
        """Forget the peak; returns the bytes that are alive."""
        self.peak = self.now
        return self.now

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.largest:
            return
        self.largest[key] = size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.largest.pop(key)


def _is_empty(tensor: torch.Tensor) -> bool:
    """Whether it has a shape alone."""
    from torch._subclasses.fake_tensor import FakeTensor

    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


class _Flash(torch.autograd.Function):
    """What a card's attention kernel takes and keeps: its inputs, its output, and the logarithms of the sums."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(q, k, v, output, q.new_empty(q.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Tensors on torch's "meta" device then behave as on a card: no code for CPUs runs, attention is a kernel's, and
    AdamW may be fused."""
    adam = sys.modules["torch.optim.adam"]
    before = functional.scaled_dot_product_attention, adam._device_dtype_check_for_fused
    functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Flash.apply(q, k, v)  # type: ignore[no-untyped-call]
    adam._device_dtype_check_for_fused = lambda *_, **__: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before[0]
        adam._device_dtype_check_for_fused = before[1]  # type: ignore[attr-defined]
