"""Products of matrices of several modules and several networks.

Shape suffixes: K neighbouring modules with one input, N networks, L rows of one network, S samples, T tokens of one,
O outputs, I inputs, R rank (of `of_rows`: rows), B a batch, X, Y, Z whatever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batches(modules: int, networks: int) -> list[Any]:
    """How to index tensors (K, N, …) so that few batched products do all: a batch of modules, or one of networks."""
    return [(slice(None), 0)] if networks == 1 else list(range(modules))


def beside(x_KNLR: Tensor) -> Tensor:
    """The same as (N, L, K · R), a view where the memory order allows it."""
    return x_KNLR.permute(1, 2, 0, 3).flatten(2)


def apart(y_KNOL: Tensor, samples: int) -> Tensor:
    """Columns of networks as those of samples: (K · S · O, T) with S · T = N · L. A view if S is N."""
    modules, networks, outputs, rows = y_KNOL.shape
    if samples > networks:
        y_KNOL = y_KNOL.view(modules, networks, outputs, samples // networks, -1).transpose(2, 3)
    elif samples < networks:  # one, of the rows of all networks
        y_KNOL = y_KNOL.transpose(1, 2)
    return y_KNOL.reshape(modules * samples * outputs, networks * rows // samples)


FEW_ROWS = 128
"""Up to so many rows a large weight is faster as the first factor, even with a copy that turns the result: on a CPU 1.4
times at 64 rows, 1.1 times at 128; and where the result is narrow at twice as many."""


def of_rows(
    x_RI: Tensor, weight_IO: Tensor, plus: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """`beta` · `plus` + `alpha` · x weight, contiguous. `plus` (O) or (R, O)."""
    rows, (inputs, outputs) = len(x_RI), weight_IO.shape
    few = rows <= FEW_ROWS or (rows <= 2 * FEW_ROWS and inputs >= 2 * outputs)
    if not x_RI.is_cpu or not few:
        if plus is not None:
            return torch.addmm(plus, x_RI, weight_IO, beta=beta, alpha=alpha)
        return (x_RI if alpha == 1.0 else x_RI * alpha) @ weight_IO
    weight_OI, x_IR = weight_IO.t(), x_RI.t()
    if plus is not None and plus.dim() == 1:
        return torch.addmm(plus[:, None], weight_OI, x_IR, beta=beta, alpha=alpha).t().contiguous()
    y_OR = torch.mm(weight_OI, x_IR if alpha == 1.0 else x_IR * alpha)
    if plus is None:
        return y_OR.t().contiguous()
    return torch.add(plus if beta == 1.0 else plus * beta, y_OR.t())  # in the order of `plus`


def product(a_BXZ: Tensor, b_BZY: Tensor, scale: float, out_BXY: Tensor | None = None) -> Tensor:
    """`scale` · a b, into `out_BXY` if that is given."""
    if scale == 1.0:
        return torch.bmm(a_BXZ, b_BZY) if out_BXY is None else torch.bmm(a_BXZ, b_BZY, out=out_BXY)
    if out_BXY is None:
        out_BXY = a_BXZ.new_empty(len(a_BXZ), a_BXZ.shape[1], b_BZY.shape[2])
    return torch.baddbmm(out_BXY, a_BXZ, b_BZY, beta=0, alpha=scale, out=out_BXY)


def sum_of_products(a_KBXZ: Tensor, b_KBZY: Tensor, plus_BXY: Tensor | None = None) -> Tensor:
    """Σ a b over K, and `plus_BXY`."""
    sum_BXY = torch.bmm(a_KBXZ[0], b_KBZY[0]) if plus_BXY is None else torch.baddbmm(plus_BXY, a_KBXZ[0], b_KBZY[0])
    for a_BXZ, b_BZY in zip(a_KBXZ[1:], b_KBZY[1:], strict=True):
        sum_BXY.baddbmm_(a_BXZ, b_BZY)
    return sum_BXY


def accumulate(out_BXY: Tensor, a_BXZ: Tensor, b_BZY: Tensor, adding: bool) -> None:
    """Write a b into `out_BXY`, of this or of a finer dtype, or add it: summed and stored in that."""
    fine = out_BXY.dtype
    if a_BXZ.dtype == fine or a_BXZ.is_cpu:
        torch.baddbmm(out_BXY, a_BXZ.to(fine), b_BZY.to(fine), beta=int(adding), out=out_BXY)
    elif adding:
        out_BXY.add_(torch.bmm(a_BXZ, b_BZY, fine))
    else:  # a card has products with results of another dtype, at the speed of the coarser one
        torch.bmm(a_BXZ, b_BZY, fine, out=out_BXY)
