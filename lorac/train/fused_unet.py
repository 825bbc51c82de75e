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
from lorac.train.attention import attend, attend_backward, columns, heads, rows, unheads
from lorac.train.fused_resnet import from_rows, to_rows
from lorac.train.gradients import Adapted, StackGradients
from lorac.train.norms import group_norm, group_norm_backward, layer_norm, layer_norm_backward


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

    def forward(self, x_BCHW: Tensor, kv_BOS: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output with channels last, what backward needs). `kv_BOS`: keys, then values, (B, 2 · C, S)."""
        batch, _, height, width = x_BCHW.shape
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        normed_BCHW, group_stats = group_norm(self.norm, x_BCHW)
        in_RC = to_rows(normed_BCHW)
        h1_RC = torch.addmm(self.proj_in.bias_O, in_RC, self.proj_in.weight_OI.t())

        n1_RC, stats1 = layer_norm(self.norms[0], h1_RC)
        q, k, v = heads(columns(self.qkv.weight_OI, n1_RC, batch), 3, self.heads)
        o_MDL, p1 = attend(q, k, v)
        a1_RC = rows(o_MDL.view(batch, -1, height * width))
        h2_RC = torch.addmm(h1_RC, a1_RC, self.out1.weight_OI.t()).add_(self.out1.bias_O)

        n2_RC, stats2 = layer_norm(self.norms[1], h2_RC)
        (q2,) = heads(columns(self.query.weight_OI, n2_RC, batch), 1, self.heads)
        k2, v2 = heads(kv_BOS, 2, self.heads)
        o_MDL, p2 = attend(q2, k2, v2)
        a2_RC = rows(o_MDL.view(batch, -1, height * width))
        h3_RC = torch.addmm(h2_RC, a2_RC, self.out2.weight_OI.t()).add_(self.out2.bias_O)

        n3_RC, stats3 = layer_norm(self.norms[2], h3_RC)
        value_FR, gate_FR = torch.addmm(self.geglu.bias_O[:, None], self.geglu.weight_OI, n3_RC.t()).chunk(2)
        gelu_FR = F.gelu(gate_FR)
        f_FR = value_FR * gelu_FR
        h4_RC = torch.addmm(h3_RC, f_FR.t(), self.ff_out.weight_OI.t()).add_(self.ff_out.bias_O)

        y_RC = torch.addmm(self.proj_out.bias_O, h4_RC, self.proj_out.weight_OI.t()).add_(to_rows(x_BCHW))
        first = (q, k, v, p1)
        second = (q2, k2, v2, p2)
        feed = (value_FR, gate_FR, gelu_FR, f_FR)
        states = ((h1_RC, n1_RC, stats1, a1_RC), (h2_RC, n2_RC, stats2, a2_RC), (h3_RC, n3_RC, stats3, h4_RC))
        return from_rows(y_RC, x_BCHW), (x_BCHW, group_stats, in_RC, states, first, second, feed)

    def backward(self, saved: tuple[Any, ...], dy_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `x_BCHW` and `kv_BOS`."""
        x_BCHW, group_stats, in_RC, states, first, second, feed = saved
        (h1_RC, n1_RC, stats1, a1_RC), (h2_RC, n2_RC, stats2, a2_RC), (h3_RC, n3_RC, stats3, h4_RC) = states
        batch = x_BCHW.shape[0]

        dout_RC = to_rows(dy_BCHW)
        self.proj_out.record(h4_RC, dout_RC)
        dh_RC = dout_RC @ self.proj_out.weight_OI

        value_FR, gate_FR, gelu_FR, f_FR = feed
        self.ff_out.record(f_FR.t(), dh_RC)
        df_FR = self.ff_out.weight_OI.t() @ dh_RC.t()
        du_OR = df_FR.new_empty(2 * df_FR.shape[0], df_FR.shape[1])
        dvalue_FR, dgate_FR = du_OR.chunk(2)
        torch.mul(df_FR, gelu_FR, out=dvalue_FR)
        torch.ops.aten.gelu_backward.grad_input(df_FR.mul_(value_FR), gate_FR, grad_input=dgate_FR)
        self.geglu.record(n3_RC, du_OR.t())
        dn_RC = du_OR.t() @ self.geglu.weight_OI
        dh_RC = layer_norm_backward(self.norms[2], dn_RC, h3_RC, stats3).add_(dh_RC)

        self.out2.record(a2_RC, dh_RC)
        q2, k2, v2, p2 = second
        do_MDL = columns(self.out2.weight_OI.t(), dh_RC, batch).view(q2.shape)
        dq_KMDL, dkv_KMDS = q2.new_empty(1, *q2.shape), k2.new_empty(2, *k2.shape)
        attend_backward(do_MDL, q2, k2, v2, p2, (dq_KMDL[0], dkv_KMDS[0], dkv_KMDS[1]))
        dq_RC = rows(unheads(dq_KMDL, batch))
        self.query.record(n2_RC, dq_RC)
        dh_RC = layer_norm_backward(self.norms[1], dq_RC @ self.query.weight_OI, h2_RC, stats2).add_(dh_RC)

        self.out1.record(a1_RC, dh_RC)
        q, k, v, p1 = first
        do_MDL = columns(self.out1.weight_OI.t(), dh_RC, batch).view(q.shape)
        dqkv_KMDL = q.new_empty(3, *q.shape)
        attend_backward(do_MDL, q, k, v, p1, (dqkv_KMDL[0], dqkv_KMDL[1], dqkv_KMDL[2]))
        dqkv_RO = rows(unheads(dqkv_KMDL, batch))
        self.qkv.record(n1_RC, dqkv_RO)
        dh_RC = layer_norm_backward(self.norms[0], dqkv_RO @ self.qkv.weight_OI, h1_RC, stats1).add_(dh_RC)

        self.proj_in.record(in_RC, dh_RC)
        dnormed_BCHW = from_rows(dh_RC @ self.proj_in.weight_OI, x_BCHW)
        dx_BCHW = group_norm_backward(self.norm, dnormed_BCHW, x_BCHW, group_stats).add_(dy_BCHW)
        return dx_BCHW, unheads(dkv_KMDS, batch)


class CaptionKeysValues:
    """Keys and values of all transformers of a level, whose `to_k` and `to_v` lie one after the other in a stack."""

    def __init__(self, gradients: StackGradients) -> None:
        self._layer = Adapted(gradients, 0, len(gradients.stack.layers))

    def forward(self, ctx_BSD: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(B, O, S) with the channels of all transformers, one below the other."""
        return columns(self._layer.weight_OI, ctx_BSD.flatten(0, 1), ctx_BSD.shape[0]), (ctx_BSD,)

    def backward(self, saved: tuple[Any, ...], dkv_BOS: Tensor) -> tuple[Tensor]:
        (ctx_BSD,) = saved
        d_RO = rows(dkv_BOS)
        self._layer.record(ctx_BSD.flatten(0, 1), d_RO)
        return ((d_RO @ self._layer.weight_OI).view_as(ctx_BSD),)
