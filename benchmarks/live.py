"""The bytes of all tensors that are alive, operation by operation, and the most there ever were: without numbers.

Within `Live` nothing large is computed. Views are torch's own; an operation in place returns what it would have written
to; any other gets outputs of the shapes, strides and dtypes that torch's "meta" kernels give, with nothing in them. So
a step of full size takes seconds, on the "meta" device or on the CPU, where memory that nobody writes to is never taken
from the system. Counted is what operations return: scratch memory within an operation is not.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as functional
from lorac.kernels import gate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SMALL = 2**14
"""Operations on fewer elements than this are computed: token ids, timesteps, losses."""
aten = torch.ops.aten


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`now` and `peak` in bytes, of the storages made since the mode was entered on a `device` of this type."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._shapes: dict[Any, Any] = {}
        """What operations give, by what they were given."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and (args[0].is_meta or args[0].is_floating_point()):
            return 1.0  # the step only asks for a gradient's norm and a clipping factor
        result = self._result(func, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device:
                self._count(tensor.untyped_storage())
        return result

    def restart(self) -> int:
        """Forget the peak; returns the bytes that are alive."""
        self.peak = self.now
        return self.now

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        schema = func._schema
        written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
        if not _is_large(func, args, kwargs):
            return func(*args, **kwargs)
        if written and func not in _SHAPE_CHANGING:
            given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
            found = [given[argument.name] for argument in written][: len(schema.returns)]
            return found[0] if len(found) == 1 else tuple(found) or None
        if any(value.alias_info for value in schema.returns):
            return func(*args, **kwargs)
        return self._empty(func, args, kwargs)

    def _empty(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Outputs with nothing in them."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else torch.get_default_device())
        key = (func, _form(args), _form(sorted(kwargs.items())))
        if key not in self._shapes:
            known = _KNOWN.get(func)
            made = known(*args) if known else _on_meta(func, args, kwargs)
            self._shapes[key] = tree_map(_Form.of, made)
        return tree_map(lambda form: form.empty(device) if isinstance(form, _Form) else form, self._shapes[key])

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)
        self.taken(key, size)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        self.given_back(key)

    def taken(self, key: int, size: int) -> None:
        """A storage came to be: for those who want to know each."""

    def given_back(self, key: int) -> None:
        """It is gone; another may get its key."""


class _Form:
    """What makes up a tensor besides its numbers."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._shape, self._stride, self._dtype = tensor.shape, tensor.stride(), tensor.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        return cls(value) if isinstance(value, torch.Tensor) else value

    def empty(self, device: Any) -> torch.Tensor:
        return torch.empty_strided(self._shape, self._stride, dtype=self._dtype, device=device)


def _form(value: Any) -> Any:
    """Hashable, and equal for arguments that give outputs of equal form."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_form(each) for each in value)
    return str(value)


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return torch.device("meta") if isinstance(value, torch.device) else value

    return func(*tree_map(moved, args), **tree_map(moved, {k: v for k, v in kwargs.items() if k != "generator"}))


def _is_large(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether to leave out the numbers: of tensors that have none, and of those that are large or become so."""
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if tensors:
        return any(tensor.is_meta or tensor.numel() >= SMALL for tensor in tensors)
    return func in _FILLED and math.prod(args[0]) >= SMALL


def _group_norm(x: torch.Tensor, weight: Any, bias: Any, batch: int, c: int, hw: int, groups: int, eps: float) -> Any:
    stats = torch.empty(batch, groups, device="meta", dtype=x.dtype)
    return _like(x), stats, stats.clone()


def _layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    stats = torch.empty(*x.shape[: -len(shape)], *(1 for _ in shape), device="meta", dtype=torch.float32)
    return torch.empty(x.shape, device="meta", dtype=x.dtype), stats, stats.clone()


def _norm_backward(dy: torch.Tensor, x: torch.Tensor, *_: Any) -> Any:
    return _like(x), None, None


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, device="meta")


_KNOWN: dict[Any, Any] = {
    aten.native_group_norm.default: _group_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm_backward.default: _norm_backward,
    aten.native_layer_norm_backward.default: _norm_backward,
}
"""Whose kernels keep the memory order of their input, where "meta" goes through a chain of small operations."""
_FILLED = {aten.zeros.default, aten.ones.default, aten.full.default}
_SHAPE_CHANGING = {aten.t_.default, aten.transpose_.default, aten.detach_.default, aten.resize_.default}


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
def as_on_a_card(kernels: bool = False) -> Iterator[None]:
    """Tensors on torch's "meta" device then behave as on a card: no code for CPUs runs, and attention is a kernel's.

    `kernels`: so are norms and the like, by the functions that launch Triton's kernels, without a launch.
    """
    before = functional.scaled_dot_product_attention, gate.opens, gate.Kernel.__getitem__
    functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Flash.apply(q, k, v)  # type: ignore[no-untyped-call]
    if kernels:
        gate.opens = lambda x, operation="": operation not in gate.UNUSED and x.is_meta and x.dtype in gate.DTYPES
        gate.Kernel.__getitem__ = lambda kernel, grid: lambda *_, **__: None
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, gate.opens, gate.Kernel.__getitem__ = before
