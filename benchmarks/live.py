"""The bytes of all tensors that are alive, operation by operation, and the most there ever were.

Under torch's FakeTensorMode nothing is computed, so a step of full size takes seconds. Counted is what torch's
operations return: scratch memory within an operation is not.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """`now` and `peak` in bytes, of the storages made since the mode was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.largest: dict[int, int] = {}
        """The storages that are alive, by id, with their bytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
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


def _is_fake(tensor: torch.Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)
