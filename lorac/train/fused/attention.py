"""Attention, forward and backward, with channels before tokens.

SD1.x's heads are narrow (8 to 160 channels). A product whose result has that few columns runs at a quarter of the
speed of one with that few rows, so queries, keys and values are held as (channels, tokens): all six products then have
wide results, and a linear layer's output is split into heads without moving a byte.

Shape suffixes: B batch, N heads, M = B · N, D channels of one head, C = N · D, L query tokens, S key tokens,
R = B · L rows, K the number of tensors in one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(x_OR: Tensor, count: int, heads: int, batch: int) -> tuple[Tensor, ...]:
    """`count` tensors (M, D, L) from their channels, one below the other: O = count · C. Views if `batch` is 1."""
    outputs, rows = x_OR.shape
    if batch == 1:
        return x_OR.view(count, heads, -1, rows).unbind()
    x_KNDBL = x_OR.view(count, heads, outputs // (count * heads), batch, -1)
    return x_KNDBL.permute(0, 3, 1, 2, 4).flatten(1, 2).contiguous().unbind()


def join_heads(x_KMDL: Tensor, batch: int) -> Tensor:
    """The inverse of `split_heads`, from a stacked tensor: (K · C, R)."""
    count, _, width, tokens = x_KMDL.shape
    if batch == 1:
        return x_KMDL.view(-1, tokens)
    x_KBNDL = x_KMDL.view(count, batch, -1, width, tokens)
    return x_KBNDL.permute(0, 2, 3, 1, 4).reshape(-1, batch * tokens)


def attend(q_MDL: Tensor, k_MDS: Tensor, v_MDS: Tensor, mask_LS: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`softmax(qᵀ k / √D + mask) vᵀ` as (M, D, L), and the softmax (M, L, S). Scales `q_MDL` in place by 1/√D."""
    q_MLD = q_MDL.mul_(q_MDL.shape[1] ** -0.5).mT
    scores_MLS = torch.bmm(q_MLD, k_MDS) if mask_LS is None else torch.baddbmm(mask_LS, q_MLD, k_MDS)
    p_MLS = torch.softmax(scores_MLS, dim=-1, out=scores_MLS)
    return torch.bmm(v_MDS, p_MLS.mT), p_MLS


def attend_backward(
    do_MDL: Tensor, q_MDL: Tensor, k_MDS: Tensor, v_MDS: Tensor, p_MLS: Tensor, out: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write the gradients of (q, k, v), of their shapes, into `out`. `q_MDL` is as `attend` left it."""
    dq_MDL, dk_MDS, dv_MDS = out
    torch.bmm(do_MDL, p_MLS, out=dv_MDS)
    dp_MLS = torch.bmm(do_MDL.mT, v_MDS)
    ds_MLS = torch.ops.aten._softmax_backward_data.out(dp_MLS, p_MLS, -1, p_MLS.dtype, grad_input=dp_MLS)
    torch.bmm(k_MDS, ds_MLS.mT, out=dq_MDL).mul_(q_MDL.shape[1] ** -0.5)
    torch.bmm(q_MDL, ds_MLS, out=dk_MDS)
