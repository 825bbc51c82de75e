"""A transformer of the U-Net with its LoRA as one differentiable operation, and the caption's keys and values.

The arithmetic is that of `lorac.sd.unet.Transformer`. What differs: the three products q, k, v are one; keys and values
of all transformers of a level come from one product; backward is written out; and gradients of weights are not computed
here but recorded (see `gradients.py`).

Shape suffixes: B batch, C channels, H height, W width, L = H · W pixels, R = B · L rows, S states of the caption,
D their channels, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorac.sd.unet import Transformer
from lorac.train.fused.attention import Attention, attention_for
from lorac.train.fused.backends import Choice
from lorac.train.fused.convolution import from_rows, to_rows
from lorac.train.fused.feed_forward import FusedFeedForward
from lorac.train.fused.frozen import Product
from lorac.train.fused.norms import group_norm, group_norm_backward, layer_norm, layer_norm_backward
from lorac.train.switches import Recompute


class OwnAttention:
    """`h + out(attention(q, k, v))` with q, k, v of `layer_norm(h)`, and its gradient."""

    def __init__(
        self, norm: nn.LayerNorm, qkv: Product, out: Product, heads: int, recompute: Recompute, choice: Choice
    ) -> None:
        self.norm, self.qkv, self.out, self.heads, self.choice = norm, qkv, out, heads, choice
        self.keep = recompute < Recompute.ELEMENTWISE

    def _form(self, h_RC: Tensor, batch: int) -> Attention:
        rows, channels = h_RC.shape
        tokens = rows // batch
        return attention_for(self.heads, tokens, tokens, channels, h_RC.device, self.keep, self.choice)

    def forward(self, h_RC: Tensor, batch: int) -> tuple[Tensor, tuple[Any, ...]]:
        """(output, what backward needs)."""
        form = self._form(h_RC, batch)
        n_RC, stats = layer_norm(self.norm, h_RC)
        heads = form.project(self.qkv, n_RC, 3, batch)
        a_RC, kept = form.mix(heads, batch)
        return self.out.rows(a_RC, h_RC), (h_RC, stats, n_RC if self.keep else None, heads, a_RC, kept)

    def backward(self, saved: tuple[Any, ...], dy_RC: Tensor, batch: int) -> Tensor:
        """The gradient of `h_RC`."""
        h_RC, stats, n_RC, heads, a_RC, kept = saved
        del saved
        form = self._form(h_RC, batch)
        do = form.gradient(self.out, a_RC, dy_RC, batch)
        dqkv_RO = form.own_backward(do, heads, a_RC, kept, batch)
        del do, heads, a_RC, kept
        if n_RC is None:
            n_RC = layer_norm(self.norm, h_RC)[0] if self.qkv.records else h_RC
        return layer_norm_backward(self.norm, self.qkv.backward(n_RC, dqkv_RO), h_RC, stats, dy_RC)


class CaptionAttention:
    """`h + out(attention(q, k, v))` with q of `layer_norm(h)` and k, v of the caption, and its gradients."""

    def __init__(
        self, norm: nn.LayerNorm, query: Product, out: Product, heads: int, recompute: Recompute, choice: Choice
    ) -> None:
        self.norm, self.query, self.out, self.heads, self.choice = norm, query, out, heads, choice
        self.keep = recompute < Recompute.ELEMENTWISE

    def _form(self, h_RC: Tensor, kv_OR: Tensor, batch: int) -> Attention:
        rows, channels = h_RC.shape
        keys = kv_OR.shape[1] // batch
        return attention_for(self.heads, rows // batch, keys, channels, h_RC.device, self.keep, self.choice)

    def forward(self, h_RC: Tensor, kv_OR: Tensor, batch: int) -> tuple[Tensor, tuple[Any, ...]]:
        """(output, what backward needs). `kv_OR`: keys, then values, (2 · C, B · S)."""
        form = self._form(h_RC, kv_OR, batch)
        n_RC, stats = layer_norm(self.norm, h_RC)
        (q,) = form.project(self.query, n_RC, 1, batch)
        a_RC, kept = form.mix((q, *form.caption(kv_OR, batch)), batch)
        return self.out.rows(a_RC, h_RC), (h_RC, stats, n_RC if self.keep else None, q, kv_OR, a_RC, kept)

    def backward(self, saved: tuple[Any, ...], dy_RC: Tensor, batch: int, below: bool) -> tuple[Tensor, Tensor]:
        """The gradients of `h_RC`, which is `dy_RC` as it came if nothing `below` wants one, and of `kv_OR`."""
        h_RC, stats, n_RC, q, kv_OR, a_RC, kept = saved
        del saved
        form = self._form(h_RC, kv_OR, batch)
        do = form.gradient(self.out, a_RC, dy_RC, batch)
        dq_RC, dkv_OR = form.caption_backward(do, (q, *form.caption(kv_OR, batch)), a_RC, kept, batch)
        del do, q, a_RC, kept
        if not below:
            return dy_RC, dkv_OR
        if n_RC is None:
            n_RC = layer_norm(self.norm, h_RC)[0] if self.query.records else h_RC
        return layer_norm_backward(self.norm, self.query.backward(n_RC, dq_RC), h_RC, stats, dy_RC), dkv_OR


class FusedTransformer:
    """`y = forward(x, kv)` and its gradients. `adapted(path, count)` finds the layers below this transformer."""

    def __init__(
        self, module: Transformer, adapted: Callable[[str, int], Product], recompute: Recompute, choice: Choice
    ) -> None:
        block: Any = module.transformer_blocks[0]
        inner = "transformer_blocks.0."
        self.again = recompute >= Recompute.TRANSFORMER
        parts = Recompute.ELEMENTWISE if self.again else recompute
        self.keep = parts < Recompute.ELEMENTWISE
        self.norm, heads = module.norm, block.attn1.heads
        self.proj_in, self.proj_out = adapted("proj_in", 1), adapted("proj_out", 1)
        qkv, out1 = adapted(f"{inner}attn1.to_q", 3), adapted(f"{inner}attn1.to_out.0", 1)
        query, out2 = adapted(f"{inner}attn2.to_q", 1), adapted(f"{inner}attn2.to_out.0", 1)
        self.own = OwnAttention(block.norm1, qkv, out1, heads, parts, choice)
        self.caption = CaptionAttention(block.norm2, query, out2, heads, parts, choice)
        geglu, ff_out = adapted(f"{inner}ff.net.0.proj", 1), adapted(f"{inner}ff.net.2", 1)
        self.feed = FusedFeedForward(block.norm3, geglu, ff_out, parts)
        self.records = self.proj_in.records

    def forward(self, x_BCHW: Tensor, kv_OR: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output with channels last, what backward needs). `kv_OR`: keys, then values, (2 · C, B · S)."""
        y_BCHW, saved = self._forward(x_BCHW.contiguous(memory_format=torch.channels_last), kv_OR)
        return y_BCHW, (saved[0], kv_OR) if self.again else saved

    def _forward(self, x_BCHW: Tensor, kv_OR: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        batch = len(x_BCHW)
        normed_BCHW, stats = group_norm(self.norm, x_BCHW)
        in_RC = to_rows(normed_BCHW)
        h_RC = self.proj_in.rows(in_RC)
        h_RC, own = self.own.forward(h_RC, batch)
        h_RC, caption = self.caption.forward(h_RC, kv_OR, batch)
        h_RC, feed = self.feed.forward(h_RC)
        x_RC = to_rows(x_BCHW)
        y_RC = self.proj_out.rows(h_RC).add_(x_RC) if x_RC.is_cpu else self.proj_out.rows(h_RC, x_RC)
        last = h_RC if self.proj_out.records else None
        return from_rows(y_RC, x_BCHW), (x_BCHW, stats, in_RC if self.keep else None, own, caption, feed, last)

    def backward(
        self, saved: tuple[Any, ...], dy_BCHW: Tensor, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of `x_BCHW` and `kv_OR`."""
        if self.again:
            _, saved = self._forward(*saved)
        x_BCHW, stats, in_RC, own, caption, feed, last_RC = saved
        del saved
        batch = len(x_BCHW)
        dy_RC = to_rows(dy_BCHW)
        dh_RC = self.proj_out.backward(dy_RC if last_RC is None else last_RC, dy_RC)
        del last_RC
        dh_RC = self.feed.backward(feed, dh_RC)
        del feed
        below = needs[0] or self.records
        dh_RC, dkv_OR = self.caption.backward(caption, dh_RC, batch, below)
        del caption
        if not below:
            return None, dkv_OR
        dh_RC = self.own.backward(own, dh_RC, batch)
        del own
        if in_RC is None and self.records:
            in_RC = to_rows(group_norm(self.norm, x_BCHW)[0])
        if not needs[0]:
            self.proj_in.record(in_RC, dh_RC)
            return None, dkv_OR
        dnormed_BCHW = from_rows(self.proj_in.backward(dh_RC if in_RC is None else in_RC, dh_RC), x_BCHW)
        return group_norm_backward(self.norm, dnormed_BCHW, x_BCHW, stats, dy_BCHW), dkv_OR


class CaptionKeysValues:
    """Keys and values of all transformers of a level, whose `to_k` and `to_v` lie one after the other."""

    def __init__(self, layer: Product) -> None:
        self._layer = layer
        self.records = layer.records

    def forward(self, ctx_BSD: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(O, B · S) with the channels of all transformers, one below the other."""
        return self._layer.columns(ctx_BSD.flatten(0, 1)), (ctx_BSD,)

    def backward(self, saved: tuple[Any, ...], dkv_OR: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None]:
        (ctx_BSD,) = saved
        if not needs[0]:
            self._layer.record(ctx_BSD.flatten(0, 1), dkv_OR.t())
            return (None,)
        return (self._layer.backward(ctx_BSD.flatten(0, 1), dkv_OR.t()).view_as(ctx_BSD),)
