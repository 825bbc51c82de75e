"""What a card would launch: every kernel of a piece of work, the bytes that it moves and the operations that it does.

Within `Launches` tensors on torch's "meta" device are taken for a card's: they have shapes, strides and dtypes, but no
numbers. lorac's own kernels are open and are noted instead of launched; attention is torch's fused kernel. Bytes are
those of the tensors that a kernel reads and of those that it writes, each once, however often caches are missed. Views
cost nothing, and neither does memory that nobody fills. What torch's CUDA code does in two launches is two
(`native/cuda/Blas.cpp` and `native/Convolution.cpp`): a product is added to a matrix that has been copied before, and
cuDNN's convolutions get their bias afterwards.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from inspect import getsource, signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as functional
from lorac.kernels import gate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import ROOT
from benchmarks.profile_step import kind_of

GEMM, LORA, ATTENTION, OPTIMISER = "GEMM", "LoRA products", "attention", "optimiser"
UPDATE = ("lorac/train/member.py", "update")
"""Where the pass is over."""
PRODUCTS = {"mm": 1, "bmm": 1, "addmm": 2, "addmm_": 2, "baddbmm": 2, "baddbmm_": 2}
"""Matrix products, and which argument is the second factor."""
NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")
ROWS_OF = ("embedding", "index", "index_select")
"""Operations that read as much as they write, not the whole of what they are given."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """A launch: its kind (see `profile_step.KINDS`), the bytes read and written, floating-point operations and the
    dtype of their factors; `place` is the line of lorac that asked for it."""

    name: str
    kind: str
    read: int
    written: int
    flops: int
    dtype: torch.dtype
    place: str

    @property
    def moved(self) -> int:
        return self.read + self.written


def _opens(x: Tensor, operation: str = "") -> bool:
    return operation not in gate.UNUSED and x.is_meta and x.dtype in gate.DTYPES


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes `kernels` while it is entered. Fused operations' products with one of `weights` are the base's, others are
    of factors. Not `noting`, tensors are a card's all the same."""

    def __init__(self, weights: Sequence[Tensor] = (), noting: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noting = noting
        self.kernels: list[Kernel] = []
        self._base, self._stack = weights, ExitStack()

    def __enter__(self) -> Launches:
        self._weights = {_storage(weight) for weight in self._base}
        for target, name, new in (
            (gate, "opens", _opens),
            (gate.Kernel, "__getitem__", lambda kernel, _: lambda *given, **named: self._own(kernel, given, named)),
            (functional, "scaled_dot_product_attention", _attend),
        ):
            self._stack.enter_context(patch.object(target, name, new))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **kwargs)
        if name in ("convolution", "convolution_backward"):
            result = _channels_last(result)
        returned = func._schema.returns
        view = returned and all(value.alias_info and not value.alias_info.is_write for value in returned)
        if (
            self._noting
            and not view
            and name not in NOTHING
            and any(t.is_meta for t in _tensors((args, kwargs, result)))
        ):
            self._of_torch(name, func, args, kwargs, result)
        return result

    def _of_torch(self, name: str, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        changed = {a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write}
        fills = name in ("copy_", "fill_", "zero_") or "out" in changed or "grad_input" in changed
        unread: set[str] = changed if fills else set()
        if name in PRODUCTS and given.get("beta", 1) == 0:
            unread = unread | {"self"}
        elif name in ("addmm", "baddbmm") and not _fuses(name, given, result):
            if _storage(given["self"]) != _storage(result):  # else the product adds to it where it is
                self._add("aten::copy_", _tensors(given["self"]), _tensors(result))
            given["self"] = result
        if name == "convolution" and given["bias"] is not None:
            unread = unread | {"bias"}
        read = _tensors(result if name in ROWS_OF else [value for key, value in given.items() if key not in unread])
        written = _tensors(result) or _tensors([given[key] for key in changed if key in given])
        self._add(f"aten::{name}", read, written, _flops(name, given, result))
        if name == "convolution" and given["bias"] is not None:
            self._add("aten::add_", [result, given["bias"]], [result])

    def _own(self, kernel: gate.Kernel, given: Sequence[Any], named: dict[str, Any]) -> None:
        if not self._noting:
            return
        names, loads, stores = _used(kernel.function)
        tensors = dict(zip(names, given, strict=False)) | named
        tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
        read = [value for key, value in tensors.items() if key in loads or key not in stores]
        module = kernel.function.__module__.rpartition(".")[2]
        self._add(f"{module}.{kernel.function.__name__}", read, [tensors[key] for key in tensors if key in stores])

    def _add(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor], flops: int = 0) -> None:
        place, updating = _place()
        kind = kind_of(name)
        if updating or ("norm" in name and "gradients.py" in place):
            kind = OPTIMISER
        elif kind == GEMM and "attention.py" in place:
            kind = ATTENTION
        elif kind == GEMM and "fused" in place and not any(_storage(tensor) in self._weights for tensor in read):
            kind = LORA
        dtype = read[0].dtype if read else torch.float32
        self.kernels.append(Kernel(name, kind, _bytes(read), _bytes(written), flops, dtype, place))


def _channels_last(result: Any) -> Any:
    """As cuDNN gives it where the weights are so; "meta" does as a CPU."""
    if isinstance(result, Tensor):
        return torch.empty_like(result, memory_format=torch.channels_last)
    return tuple(each if each is None else _channels_last(each) for each in result)


def _attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """torch's fused kernel, which does not keep the softmax."""
    output: Tensor = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, is_causal)[0]
    return output


def _fuses(name: str, given: dict[str, Any], result: Tensor) -> bool:
    """Whether cuBLASLt adds a bias of columns as it stores the product."""
    plus: Tensor = given["self"]
    return name == "addmm" and given.get("beta", 1) == 1 and plus.dim() == 1 and result.is_contiguous()


def _flops(name: str, given: dict[str, Any], result: Any) -> int:
    """A multiplication and an addition are two. Backward of attention has five products, of which forward has two."""
    if name in PRODUCTS:
        first, second = [value for value in given.values() if isinstance(value, Tensor)][PRODUCTS[name] - 1 :][:2]
        return int(2 * first.numel() * second.shape[-1])
    if name == "convolution":
        return int(2 * result.numel() * given["weight"][0].numel())
    if name == "convolution_backward":
        assert result[1] is None
        return int(2 * given["grad_output"].numel() * given["weight"][0].numel())
    if name.startswith("_scaled_dot_product"):
        q, k = given["query"], given["key"]
        products = 5 if "backward" in name else 2
        return int(2 * products * q.numel() * k.shape[2])
    return 0


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of different tensors; what is expanded counts as what it is expanded from."""
    places = {(_storage(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(
        t.itemsize * math.prod(n for n, step in zip(t.shape, t.stride(), strict=True) if step) for t in places.values()
    )


@cache
def _used(function: Callable[..., Any]) -> tuple[list[str], set[str], set[str]]:
    """The parameters of a kernel, those that it loads itself (not one that it calls), and those that it stores to."""
    loads, stores = (set(re.findall(rf"tl\.{verb}\(\s*(\w+)", getsource(function))) for verb in ("load", "store"))
    return list(signature(function).parameters), loads, stores


def _place() -> tuple[str, bool]:
    """The innermost line of lorac that is being done, and whether that is an update."""
    place, updating = "", False
    for file, line, function in _frames():
        place = place or f"{file}:{line} {function}"
        updating = updating or (file, function) == UPDATE
    return place, updating


def _frames() -> Iterator[tuple[str, int, str]]:
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        file = _own_file(code.co_filename)
        if file:
            yield file, frame.f_lineno, code.co_name
        frame = frame.f_back  # type: ignore[assignment]


@cache
def _own_file(name: str) -> str:
    """Relative to the project, of files that are lorac's."""
    path = Path(name)
    own = any(path.is_relative_to(ROOT / folder) for folder in ("lorac", "kernels"))
    return path.relative_to(ROOT).as_posix() if own else ""
