"""How a fused operation enters autograd's graph."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Operation(Protocol):
    """A function of tensors that knows its gradient.

    `forward` returns its output and what backward needs: nested tuples of tensors and None. `needs` says of each input
    whether its gradient is wanted; where it is not, `backward` may return None.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Any, ...]]: ...

    def backward(
        self, saved: tuple[Any, ...], gradient: Tensor, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]: ...


class _Call(torch.autograd.Function):
    """An `Operation` in the graph. An `anchor` that requires gradients makes backward run whatever the inputs."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, anchor: Tensor | None, *inputs: Tensor) -> Tensor:
        output: Tensor
        output, ctx.saved = operation.forward(*inputs)
        ctx.operation = operation
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        # The graph lives until the step is over; what was kept is let go as backward comes by.
        holder, ctx.saved = [ctx.saved], ()
        return None, None, *ctx.operation.backward(holder.pop(), *gradients, ctx.needs_input_grad[2:])


class Graph:
    """Runs operations as nodes of autograd's graph."""

    def __init__(self) -> None:
        self._anchor = torch.ones(0, requires_grad=True)

    def call(self, operation: Any, *inputs: Tensor) -> Tensor:
        """An operation without factors: where no input has a gradient, nothing is kept and there is no backward."""
        output: Tensor = _Call.apply(operation, None, *inputs)  # type: ignore[no-untyped-call]
        return output

    def train(self, operation: Any, *inputs: Tensor) -> Tensor:
        """An operation whose factors are trained: backward runs even if no input wants a gradient."""
        output: Tensor = _Call.apply(operation, self._anchor, *inputs)  # type: ignore[no-untyped-call]
        return output
