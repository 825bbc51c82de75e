"""Attention, forward and backward, with channels before tokens.

SD1.x's heads are narrow (8 to 160 channels). A product whose result has that few columns runs at a quarter of the
speed of one with that few rows, so queries, keys and values are held as (channels, tokens): all six products then have
wide results, and a linear layer's output is split into heads without moving a byte.

Shape suffixes: B batch, N heads, M = B · N, D channels of one head, C = N · D, L query tokens, S key tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def heads(x_BCL: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """`count` tensors (M, D, L) from their channels, one below the other: (B, count · C, L). Views if B is 1."""
    batch, _, tokens = x_BCL.shape
    x_KMDL = x_BCL.view(batch, count, heads, -1, tokens).transpose(0, 1).reshape(count, batch * heads, -1, tokens)
    return x_KMDL.unbind()


def unheads(x_KMDL: Tensor, batch: int) -> Tensor:
    """The inverse of `heads`, from a stacked tensor."""
    count, _, _, tokens = x_KMDL.shape
    return x_KMDL.view(count, batch, -1, tokens).transpose(0, 1).reshape(batch, -1, tokens)


def rows(x_BCL: Tensor) -> Tensor:
    """(B, C, L) as (B · L, C). A view if B is 1."""
    return x_BCL.transpose(1, 2).reshape(-1, x_BCL.shape[1])


def columns(weight_OI: Tensor, x_RI: Tensor, batch: int) -> Tensor:
    """A linear layer without bias that turns (B · L, I) into (B, O, L)."""
    x_BIL = x_RI.view(batch, -1, x_RI.shape[1]).transpose(1, 2)
    return torch.bmm(weight_OI.expand(batch, -1, -1), x_BIL)


def attend(q_MDL: Tensor, k_MDS: Tensor, v_MDS: Tensor, mask_LS: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`softmax(qᵀ k / √D + mask) vᵀ` as (M, D, L), and the softmax (M, L, S) for `attend_backward`."""
    scale = q_MDL.shape[1] ** -0.5
    start = q_MDL.new_zeros(1, 1) if mask_LS is None else mask_LS
    scores_MLS = torch.baddbmm(start, q_MDL.mT, k_MDS, beta=0 if mask_LS is None else 1, alpha=scale)
    p_MLS = torch.softmax(scores_MLS, dim=-1, out=scores_MLS)
    return torch.bmm(v_MDS, p_MLS.mT), p_MLS


def attend_backward(
    do_MDL: Tensor, q_MDL: Tensor, k_MDS: Tensor, v_MDS: Tensor, p_MLS: Tensor, out: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write the gradients of (q, k, v), of their shapes, into `out`."""
    scale = q_MDL.shape[1] ** -0.5
    dq_MDL, dk_MDS, dv_MDS = out
    torch.bmm(do_MDL, p_MLS, out=dv_MDS)
    dp_MLS = torch.bmm(do_MDL.mT, v_MDS)
    ds_MLS = torch.ops.aten._softmax_backward_data.out(dp_MLS, p_MLS, -1, p_MLS.dtype, grad_input=dp_MLS)
    torch.baddbmm(dq_MDL, k_MDS, ds_MLS.mT, beta=0, alpha=scale, out=dq_MDL)
    torch.baddbmm(dk_MDS, q_MDL, ds_MLS, beta=0, alpha=scale, out=dk_MDS)
