"""GEGLU (Shazeer 2020, arXiv:2002.05202): `value · gelu(gate)` of one projection `(value, gate)`.

    y  = a · Φ(b) b,   with a, b the halves of the projection and Φ the normal distribution function
    da = dy · gelu(b)
    db = dy · a · gelu'(b),   gelu'(b) = Φ(b) + b φ(b),   φ = Φ' = exp(−b²/2) / √(2π)

Autograd keeps the projection and gelu(gate); the projection alone is enough, because gelu is cheap to compute again. In
SD1.x's feed-forward layers, whose inner width is the largest of all, this saves a third of what is kept.

Shape suffixes: R rows, F channels, O = 2 · F.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lorac.kernels import gate
from lorac.kernels.gate import blocks, kernel
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

ROWS, COLUMNS = 4, 256
"""Of a program: eight elements a thread, which are 16 bytes of float16. Every width of SD1.x is a multiple of 256."""


def geglu_definition(projection: Tensor) -> Tensor:
    """What the operation means, in plain PyTorch: (…, 2n) to (…, n)."""
    value, gates = projection.chunk(2, dim=-1)
    return value * F.gelu(gates)


@kernel
def _phi(b: tl.tensor) -> tl.tensor:
    """Φ(b)."""
    return 0.5 * (1.0 + tl.math.erf(b * 0.7071067811865476))


@kernel
def _forward(
    u_RO: tl.tensor, y_RF: tl.tensor, rows: tl.tensor, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < F)
    a = tl.load(u_RO + row * (2 * F) + column, mask=inside).to(tl.float32)
    b = tl.load(u_RO + row * (2 * F) + F + column, mask=inside).to(tl.float32)
    tl.store(y_RF + row * F + column, (a * b * _phi(b)).to(y_RF.dtype.element_ty), mask=inside)


@kernel
def _backward(
    u_RO: tl.tensor,
    dy_RF: tl.tensor,
    du_RO: tl.tensor,
    rows: tl.tensor,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < F)
    a = tl.load(u_RO + row * (2 * F) + column, mask=inside).to(tl.float32)
    b = tl.load(u_RO + row * (2 * F) + F + column, mask=inside).to(tl.float32)
    dy = tl.load(dy_RF + row * F + column, mask=inside).to(tl.float32)
    phi = _phi(b)
    slope = phi + b * tl.exp(-0.5 * b * b) * 0.3989422804014327
    tl.store(du_RO + row * (2 * F) + column, (dy * b * phi).to(du_RO.dtype.element_ty), mask=inside)
    tl.store(du_RO + row * (2 * F) + F + column, (dy * a * slope).to(du_RO.dtype.element_ty), mask=inside)


def geglu_forward(u_RO: Tensor) -> Tensor:
    """`geglu_definition` by a kernel, of contiguous rows."""
    rows, width = u_RO.numel() // u_RO.shape[-1], u_RO.shape[-1] // 2
    assert u_RO.is_contiguous()
    y_RF = u_RO.new_empty(*u_RO.shape[:-1], width)
    _forward[_grid(rows, width)](u_RO, y_RF, rows, width, ROWS, COLUMNS)
    return y_RF


def geglu_backward(dy_RF: Tensor, u_RO: Tensor, du_RO: Tensor) -> Tensor:
    """The gradient of `u_RO`, by a kernel, into `du_RO`, which may be `u_RO` itself. All rows are contiguous."""
    rows, width = u_RO.numel() // u_RO.shape[-1], u_RO.shape[-1] // 2
    assert u_RO.is_contiguous()
    assert dy_RF.is_contiguous()
    assert du_RO.is_contiguous()
    _backward[_grid(rows, width)](u_RO, dy_RF, du_RO, rows, width, ROWS, COLUMNS)
    return du_RO


def _grid(rows: int, width: int) -> tuple[int, int]:
    return blocks(rows, ROWS), blocks(width, COLUMNS)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projection: Tensor) -> Tensor:
        ctx.save_for_backward(projection)
        return _geglu(projection)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (projection,) = ctx.saved_tensors
        if gate.opens(projection, "geglu"):
            rows = projection.contiguous()
            return geglu_backward(grad.contiguous(), rows, torch.empty_like(rows))
        both = torch.empty_like(projection)
        value, gates = projection.chunk(2, dim=-1)
        into_value, into_gate = both.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gates), out=into_value)
        torch.mul(torch.ops.aten.gelu_backward(grad, gates), value, out=into_gate)
        return both


def geglu(projection: Tensor) -> Tensor:
    """`geglu_definition`, keeping only `projection` for the backward pass; a compiler sees the definition."""
    if torch.compiler.is_compiling():
        return geglu_definition(projection)
    if not torch.is_grad_enabled() or not projection.requires_grad:
        return _geglu(projection)
    result: Tensor = _GEGLU.apply(projection)  # type: ignore[no-untyped-call]
    return result


def _geglu(projection: Tensor) -> Tensor:
    return geglu_forward(projection.contiguous()) if gate.opens(projection, "geglu") else geglu_definition(projection)
