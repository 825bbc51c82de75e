"""Products of matrices of several modules and several networks.

Shape suffixes: K neighbouring modules with one input, N networks, L rows of one network, S samples, T tokens of one,
O outputs, R rank, B a batch, X, Y, Z whatever.
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
    """Write a b into `out_BXY`, of this or of a finer dtype, or add it."""
    if out_BXY.dtype == a_BXZ.dtype:
        torch.baddbmm(out_BXY, a_BXZ, b_BZY, beta=int(adding), out=out_BXY)
    elif adding:
        out_BXY.add_(torch.bmm(a_BXZ, b_BZY))
    else:
        out_BXY.copy_(torch.bmm(a_BXZ, b_BZY))
