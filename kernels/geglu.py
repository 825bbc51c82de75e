"""GEGLU (Shazeer 2020, arXiv:2002.05202): `value · gelu(gate)` of one projection `(value, gate)`.

    y  = a · Φ(b) b,   with a, b the halves of the projection and Φ the normal distribution function
    da = dy · gelu(b)
    db = dy · a · gelu'(b)

Autograd keeps the projection and gelu(gate); the projection alone is enough, because gelu is cheap to compute again. In
SD1.x's feed-forward layers, whose inner width is the largest of all, this saves a third of what is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def geglu_definition(projection: Tensor) -> Tensor:
    """What the operation means, in plain PyTorch: (…, 2n) to (…, n)."""
    value, gate = projection.chunk(2, dim=-1)
    return value * F.gelu(gate)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projection: Tensor) -> Tensor:
        ctx.save_for_backward(projection)
        return geglu_definition(projection)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (projection,) = ctx.saved_tensors
        value, gate = projection.chunk(2, dim=-1)
        both = torch.empty_like(projection)
        into_value, into_gate = both.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=into_value)
        torch.mul(torch.ops.aten.gelu_backward(grad, gate), value, out=into_gate)
        return both


def geglu(projection: Tensor) -> Tensor:
    """`geglu_definition`, keeping only `projection` for the backward pass."""
    if not torch.is_grad_enabled() or not projection.requires_grad:
        return geglu_definition(projection)
    result: Tensor = _GEGLU.apply(projection)  # type: ignore[no-untyped-call]
    return result
