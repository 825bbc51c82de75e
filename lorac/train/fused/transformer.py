"""A transformer of the U-Net with its LoRA as one differentiable operation, and the caption's keys and values.

The arithmetic is that of `lorac.sd.unet.Transformer`. What differs: the three products q, k, v are one; keys and values
of all transformers of a level come from one product; backward is written out; and gradients of weights are not computed
here but recorded (see `gradients.py`).

Shape suffixes: B batch, C channels, H height, W width, L = H · W pixels, R = B · L rows, S states of the caption,
D their channels, F = 4 · C, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorac.sd.unet import Transformer
from lorac.train.fused.attention import attend, attend_backward, join_heads, split_heads
from lorac.train.fused.convolution import from_rows, to_rows
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.linear import Adapted
from lorac.train.fused.norms import group_norm, group_norm_backward, layer_norm, layer_norm_backward


class FusedTransformer:
    """`y = forward(x, kv)` and its gradients. `adapted(path, count)` finds the layers below this transformer."""

    def __init__(self, module: Transformer, adapted: Callable[[str, int], Adapted]) -> None:
        block: Any = module.transformer_blocks[0]
        self.norm, self.norms = module.norm, (block.norm1, block.norm2, block.norm3)
        self.heads: int = block.attn1.heads
        self.proj_in, self.proj_out = adapted("proj_in", 1), adapted("proj_out", 1)
        inner = "transformer_blocks.0."
        self.qkv, self.out1 = adapted(f"{inner}attn1.to_q", 3), adapted(f"{inner}attn1.to_out.0", 1)
        self.query, self.out2 = adapted(f"{inner}attn2.to_q", 1), adapted(f"{inner}attn2.to_out.0", 1)
        self.geglu, self.ff_out = adapted(f"{inner}ff.net.0.proj", 1), adapted(f"{inner}ff.net.2", 1)

    def forward(self, x_BCHW: Tensor, kv_OR: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output with channels last, what backward needs). `kv_OR`: keys, then values, (2 · C, B · S)."""
        batch = len(x_BCHW)
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        normed_BCHW, group_stats = group_norm(self.norm, x_BCHW)
        in_RC = to_rows(normed_BCHW)
        h1_RC = self.proj_in.rows(in_RC)

        n1_RC, stats1 = layer_norm(self.norms[0], h1_RC)
        q, k, v = split_heads(self.qkv.columns(n1_RC), 3, self.heads, batch)
        o_MDL, p1 = attend(q, k, v)
        a1_RC = join_heads(o_MDL[None], batch).t()
        h2_RC = self.out1.rows(a1_RC, h1_RC)

        n2_RC, stats2 = layer_norm(self.norms[1], h2_RC)
        (q2,) = split_heads(self.query.columns(n2_RC), 1, self.heads, batch)
        k2, v2 = split_heads(kv_OR, 2, self.heads, batch)
        o_MDL, p2 = attend(q2, k2, v2)
        a2_RC = join_heads(o_MDL[None], batch).t()
        h3_RC = self.out2.rows(a2_RC, h2_RC)

        n3_RC, stats3 = layer_norm(self.norms[2], h3_RC)
        value_RF, gate_RF = self.geglu.rows(n3_RC).chunk(2, dim=1)
        gelu_RF = F.gelu(gate_RF)
        f_RF = value_RF * gelu_RF
        h4_RC = self.ff_out.rows(f_RF, h3_RC)

        y_RC = self.proj_out.rows(h4_RC).add_(to_rows(x_BCHW))
        first = (q, k, v, p1)
        second = (q2, k2, v2, p2)
        feed = (value_RF, gate_RF, gelu_RF, f_RF)
        states = ((h1_RC, n1_RC, stats1, a1_RC), (h2_RC, n2_RC, stats2, a2_RC), (h3_RC, n3_RC, stats3, h4_RC))
        return from_rows(y_RC, x_BCHW), (x_BCHW, group_stats, in_RC, states, first, second, feed)

    def backward(
        self, saved: tuple[Any, ...], dy_BCHW: Tensor, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor]:
        """The gradients of `x_BCHW` and `kv_OR`."""
        x_BCHW, group_stats, in_RC, states, first, second, feed = saved
        (h1_RC, n1_RC, stats1, a1_RC), (h2_RC, n2_RC, stats2, a2_RC), (h3_RC, n3_RC, stats3, h4_RC) = states
        batch = x_BCHW.shape[0]

        dout_RC = to_rows(dy_BCHW)
        dh_RC = self.proj_out.backward(h4_RC, dout_RC)

        value_RF, gate_RF, gelu_RF, f_RF = feed
        df_RF = self.ff_out.backward(f_RF, dh_RC)
        du_RO = df_RF.new_empty(df_RF.shape[0], 2 * df_RF.shape[1])
        dvalue_RF, dgate_RF = du_RO.chunk(2, dim=1)
        torch.mul(df_RF, gelu_RF, out=dvalue_RF)
        torch.ops.aten.gelu_backward.grad_input(df_RF.mul_(value_RF), gate_RF, grad_input=dgate_RF)
        dn_RC = self.geglu.backward(n3_RC, du_RO)
        dh_RC = layer_norm_backward(self.norms[2], dn_RC, h3_RC, stats3).add_(dh_RC)

        q2, k2, v2, p2 = second
        (do_MDL,) = split_heads(self.out2.backward_columns(a2_RC, dh_RC), 1, self.heads, batch)
        dq_KMDL, dkv_KMDS = q2.new_empty(1, *q2.shape), k2.new_empty(2, *k2.shape)
        attend_backward(do_MDL, q2, k2, v2, p2, (dq_KMDL[0], dkv_KMDS[0], dkv_KMDS[1]))
        dq_RC = join_heads(dq_KMDL, batch).t()
        dh_RC = layer_norm_backward(self.norms[1], self.query.backward(n2_RC, dq_RC), h2_RC, stats2).add_(dh_RC)

        q, k, v, p1 = first
        (do_MDL,) = split_heads(self.out1.backward_columns(a1_RC, dh_RC), 1, self.heads, batch)
        dqkv_KMDL = q.new_empty(3, *q.shape)
        attend_backward(do_MDL, q, k, v, p1, (dqkv_KMDL[0], dqkv_KMDL[1], dqkv_KMDL[2]))
        dqkv_RO = join_heads(dqkv_KMDL, batch).t()
        dh_RC = layer_norm_backward(self.norms[0], self.qkv.backward(n1_RC, dqkv_RO), h1_RC, stats1).add_(dh_RC)

        if not needs[0]:
            self.proj_in.record(in_RC, dh_RC)
            return None, join_heads(dkv_KMDS, batch)
        dnormed_BCHW = from_rows(self.proj_in.backward(in_RC, dh_RC), x_BCHW)
        dx_BCHW = group_norm_backward(self.norm, dnormed_BCHW, x_BCHW, group_stats).add_(dy_BCHW)
        return dx_BCHW, join_heads(dkv_KMDS, batch)


class CaptionKeysValues:
    """Keys and values of all transformers of a level, whose `to_k` and `to_v` lie one after the other in a stack."""

    def __init__(self, gradients: StackGradients) -> None:
        self._layer = Adapted(gradients, 0, len(gradients.stack.layers))

    def forward(self, ctx_BSD: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(O, B · S) with the channels of all transformers, one below the other."""
        return self._layer.columns(ctx_BSD.flatten(0, 1)), (ctx_BSD,)

    def backward(self, saved: tuple[Any, ...], dkv_OR: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None]:
        (ctx_BSD,) = saved
        if not needs[0]:
            self._layer.record(ctx_BSD.flatten(0, 1), dkv_OR.t())
            return (None,)
        return (self._layer.backward(ctx_BSD.flatten(0, 1), dkv_OR.t()).view_as(ctx_BSD),)
