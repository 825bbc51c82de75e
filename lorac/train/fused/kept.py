"""How much a graph keeps for backward: for tests, benchmarks, and the memory planner's formulas.

Works on fake tensors too (`torch._subclasses.fake_tensor.FakeTensorMode`), which need no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


def kept_bytes(result: Tensor, besides: Iterable[nn.Module] = ()) -> int:
    """The bytes that the graph behind `result` keeps, each storage once, without the parameters of some modules.

    Counted are what built-in operations save, and `saved` of fused ones.
    """
    counted = {_storage(parameter): 0 for module in besides for parameter in module.parameters()}
    for tensor in _kept(result):
        counted.setdefault(_storage(tensor), tensor.untyped_storage().nbytes())
    return sum(counted.values())


def _kept(result: Tensor) -> Iterator[Tensor]:
    waiting: list[Any] = [result.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        attributes = [name for name in dir(node) if name.startswith("_saved_")]
        yield from _tensors([getattr(node, name) for name in attributes] + [getattr(node, "saved", None)])
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
