"""Attention, forward and backward, in two forms with the same methods.

`Whole` keeps the softmax in memory, with channels before tokens. SD1.x's heads are narrow (8 to 160 channels). A
product whose result has that few columns runs at a quarter of the speed of one with that few rows, so queries, keys and
values are held as (channels, tokens): all six products then have wide results, and a linear layer's output is split
into heads without moving a byte.

`Blockwise` never has the whole softmax: it takes queries and keys a block at a time and keeps the logarithms of the
sums alone (Dao et al. 2022, arXiv:2205.14135). Backward computes the scores again, five products instead of four.
Heads are views of rows. For 4096 tokens of 8 · 40 channels the softmax would be 537 MB.

Shape suffixes: B batch, N heads, M = B · N, D channels of one head, C = N · D, L query tokens, S key tokens,
R = B · L rows, K the number of tensors in one, O = K · C.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from lorac.train.fused.backends import Choice
from lorac.train.fused.frozen import Product

WHOLE_LIMIT = 2**26
"""Most multiplications N · L · S · D of a picture with which the softmax is kept. Measured on a CPU: with 8 channels a
head, `Whole` is faster up to any size that fits (1024 tokens: 29 ms against 64), with 80 the two are equal."""


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


@cache
def causal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores: nothing on and below the diagonal, −∞ above it."""
    return torch.full((tokens, tokens), -torch.inf, dtype=dtype, device=device).triu_(1)


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


class Attention(Protocol):
    """Attention between linear layers. Heads are in the form's own layout; `batch` is the number of pictures.

    What `mix` keeps for backward is what is not kept otherwise: backward gets the heads and `a_RC` as well.
    """

    def project(self, layer: Product, x_RC: Tensor, count: int, batch: int) -> tuple[Tensor, ...]:
        """Heads of the `count` outputs of a layer that stand beside each other."""
        ...

    def caption(self, kv_OR: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Heads of keys and values that are given as channels before rows."""
        ...

    def mix(self, heads: tuple[Tensor, ...], batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What attention makes of heads, as rows (R, C), and what backward needs of it."""
        ...

    def gradient(self, layer: Product, a_RC: Tensor, dy_RC: Tensor, batch: int) -> Tensor:
        """Backward of the layer behind, whose input was `a_RC`: heads of its gradient."""
        ...

    def own_backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int, order: str = "qkv"
    ) -> Tensor:
        """The gradients of what `project` made q, k and v of, beside each other in that order, (R, 3 · C)."""
        ...

    def caption_backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int
    ) -> tuple[Tensor, Tensor]:
        """The gradients of what `project` made q of, (R, C), and of what `caption` got."""
        ...


class Whole:
    """Heads are (M, D, L)."""

    def __init__(self, heads: int, causal: bool) -> None:
        self._heads, self._causal = heads, causal

    def project(self, layer: Product, x_RC: Tensor, count: int, batch: int) -> tuple[Tensor, ...]:
        return split_heads(layer.columns(x_RC), count, self._heads, batch)

    def caption(self, kv_OR: Tensor, batch: int) -> tuple[Tensor, ...]:
        return split_heads(kv_OR, 2, self._heads, batch)

    def mix(self, heads: tuple[Tensor, ...], batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        q, k, v = heads
        mask = causal_mask(q.shape[2], q.dtype, q.device) if self._causal else None
        o_MDL, p_MLS = attend(q, k, v, mask)
        return join_heads(o_MDL[None], batch).t(), (p_MLS,)

    def gradient(self, layer: Product, a_RC: Tensor, dy_RC: Tensor, batch: int) -> Tensor:
        return split_heads(layer.backward_columns(a_RC, dy_RC), 1, self._heads, batch)[0]

    def own_backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int, order: str = "qkv"
    ) -> Tensor:
        q, k, v = heads
        d_KMDL = q.new_empty(3, *q.shape)
        d = dict(zip(order, d_KMDL.unbind(), strict=True))
        attend_backward(do, q, k, v, kept[0], (d["q"], d["k"], d["v"]))
        return join_heads(d_KMDL, batch).t()

    def caption_backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int
    ) -> tuple[Tensor, Tensor]:
        q, k, v = heads
        dq_KMDL, dkv_KMDS = q.new_empty(1, *q.shape), k.new_empty(2, *k.shape)
        attend_backward(do, q, k, v, kept[0], (dq_KMDL[0], dkv_KMDS[0], dkv_KMDS[1]))
        return join_heads(dq_KMDL, batch).t(), join_heads(dkv_KMDS, batch)


class Blockwise:
    """Heads are (B, N, L, D), views of rows; those of the caption are copies, which are small.

    torch has one kernel for a CPU; where there is no `choice`, that is used.
    """

    def __init__(self, heads: int, choice: Choice | None, causal: bool) -> None:
        self._heads, self._choice, self._causal = heads, choice, causal

    def project(self, layer: Product, x_RC: Tensor, count: int, batch: int) -> tuple[Tensor, ...]:
        return self._split(layer.rows(x_RC), count, batch)

    def caption(self, kv_OR: Tensor, batch: int) -> tuple[Tensor, ...]:
        return self._split(kv_OR.t().contiguous(), 2, batch)

    def mix(self, heads: tuple[Tensor, ...], batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self._choice is None:
            o_BNLD, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, self._causal)
            return _rows(o_BNLD), (sums,)
        # A small graph inside this operation has the backward of whichever kernel it is.
        q, k, v = leaves = tuple(x.detach().requires_grad_() for x in heads)
        with torch.enable_grad():
            o_BNLD = self._choice.attend(q, k, v, self._causal)
        return _rows(o_BNLD.detach()), (o_BNLD, *leaves)

    def gradient(self, layer: Product, a_RC: Tensor, dy_RC: Tensor, batch: int) -> Tensor:
        return self._split(layer.backward(a_RC, dy_RC), 1, batch)[0]

    def own_backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int, order: str = "qkv"
    ) -> Tensor:
        d_BNLD = dict(zip("qkv", self._backward(do, heads, a_RC, kept, batch), strict=True))
        return torch.cat([_rows(d_BNLD[each]) for each in order], dim=1)

    def caption_backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int
    ) -> tuple[Tensor, Tensor]:
        dq_BNLD, *dkv_BNSD = self._backward(do, heads, a_RC, kept, batch)
        return _rows(dq_BNLD), torch.cat([_rows(d).t() for d in dkv_BNSD])

    def _split(self, x_RO: Tensor, count: int, batch: int) -> tuple[Tensor, ...]:
        x_BLKND = x_RO.view(batch, x_RO.shape[0] // batch, count, self._heads, -1)
        return x_BLKND.permute(2, 0, 3, 1, 4).unbind()

    def _backward(
        self, do: Tensor, heads: tuple[Tensor, ...], a_RC: Tensor, kept: Any, batch: int
    ) -> tuple[Tensor, ...]:
        if self._choice is not None:
            o_BNLD, *leaves = kept
            return tuple(torch.autograd.grad(o_BNLD, leaves, do))
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return tuple(backward(do, *heads, *self._split(a_RC, 1, batch), *kept, 0.0, self._causal))


def _rows(x_BNLD: Tensor) -> Tensor:
    """(R, C); a view where tokens come before heads in memory."""
    return x_BNLD.transpose(1, 2).flatten(2).flatten(0, 1)


def attention_for(
    heads: int,
    q_tokens: int,
    k_tokens: int,
    channels: int,
    device: torch.device,
    keep: bool,
    choice: Choice,
    causal: bool = False,
) -> Attention:
    """The form for a size. `keep` says that speed comes before memory."""
    if device.type != "cpu":
        return Blockwise(heads, choice, causal)
    whole = keep and q_tokens * k_tokens * channels <= WHOLE_LIMIT
    return Whole(heads, causal) if whole else Blockwise(heads, None, causal)
