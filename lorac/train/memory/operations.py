"""What each fused operation keeps and needs, as the operations in `lorac.train.fused` have it, line by line.

    transformer, nothing        kept: what follows, and x downᵀ of each module, what norms and GEGLU gave
    transformer, elementwise    kept: 19 C a pixel: x, h1, q k v, a, h2, q, a, h3, the projection (8 C), h4
    transformer, feed-forward   11 C: all but the projection
    transformer, transformer    C: x alone
    resnet                      C in, C out: x, what the first convolution gave
    resnet, block               C in: x alone

Where Triton's kernels run, backward goes through SiLU with the norm before it, and wants no gelu of its own.

Functions ending in `_back` give the gradient of the input. Letters: R rows, I inputs, O outputs, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorac.train.memory.meter import Block, Meter
from lorac.train.switches import Recompute

WHOLE_LIMIT = 2**26
"""`lorac.train.fused.attention`'s: most multiplications of a picture with which the softmax is kept."""


@dataclass(frozen=True)
class Linear:
    """A layer with its LoRA: `modules` beside each other, `rank` of each."""

    inputs: int
    outputs: int
    rank: int = 0
    modules: int = 1
    merged: bool = False
    networks: int = 1
    casts: int = 0
    """Bytes of a number of the factors as the layer reads them, where it casts them each time."""

    def cast(self, m: Meter, features: int) -> Block | None:
        """A factor between so many features and all ranks, for as long as it is read."""
        return m.new(self.rank * features * self.networks, self.casts) if self.casts else None


def rows(m: Meter, layer: Linear, count: int) -> Block:
    """y of so many rows."""
    y = m.new(count * layer.outputs)
    if layer.rank and not layer.merged:
        down = layer.cast(m, layer.inputs * layer.modules)
        middle = m.new(count * layer.rank * layer.modules)
        del down
        layer.cast(m, layer.outputs)
        if m.keeps_middles:
            m.middles.append(middle)
    return y


def rows_back(m: Meter, layer: Linear, count: int) -> Block:
    dx = m.new(count * layer.inputs)
    if layer.rank and not layer.merged:
        width = count * layer.rank * layer.modules
        held = [m.new(width), m.middles.pop() if m.middles else m.new(width)]  # dy up and x down
        layer.cast(m, layer.inputs * layer.modules)
        if m.element < 4:
            m.new(layer.rank * layer.outputs * layer.networks)
        del held
    return dx


@dataclass(frozen=True)
class Transformer:
    """Rows are the pixels of all samples, states the caption's of all samples."""

    channels: int
    heads: int
    samples: int
    pixels: int
    states: int
    proj_in: Linear
    qkv: Linear
    out1: Linear
    query: Linear
    out2: Linear
    geglu: Linear
    ff_out: Linear
    proj_out: Linear
    level: Recompute
    cuda: bool
    kernels: bool

    @property
    def count(self) -> int:
        return self.samples * self.pixels

    @property
    def keep(self) -> bool:
        return self.level < Recompute.ELEMENTWISE

    def whole(self, states: int) -> bool:
        return self.keep and not self.cuda and self.pixels * states * self.channels <= WHOLE_LIMIT

    def forward(self, m: Meter, x: Block) -> tuple[Block, Any]:
        y, saved = self._forward(m, x)
        return y, (x,) if self.level >= Recompute.TRANSFORMER else saved

    def _forward(self, m: Meter, x: Block) -> tuple[Block, Any]:
        r, c = self.count, self.channels
        normed = m.new(r * c)
        h = rows(m, self.proj_in, r)
        h, own = self._attention(m, h, self.qkv, self.out1, self.pixels)
        h, caption = self._attention(m, h, self.query, self.out2, self.states)
        h, feed = self._feed(m, h)
        y = rows(m, self.proj_out, r)
        return y, (x, normed if self.keep else None, own, caption, feed, h)

    def _attention(self, m: Meter, h: Block, projection: Linear, out: Linear, states: int) -> tuple[Block, Any]:
        r, own = self.count, projection.modules == 3
        n = m.new(r * self.channels)
        heads = self._columns(m, projection, r) if self.whole(states) else rows(m, projection, r)
        caption = None if own else m.new(2 * self.samples * states * self.channels)
        a, kept = self._mix(m, states)
        y = rows(m, out, r)
        return y, (h, n if self.keep else None, heads, a, kept, caption if self.cuda else None)

    def _columns(self, m: Meter, layer: Linear, count: int) -> Block:
        y = rows(m, layer, count)
        if self.samples > 1:
            return m.new(y.size, 1)
        return y

    def _mix(self, m: Meter, states: int) -> tuple[Block, Any]:
        r, m_heads = self.count, self.samples * self.heads
        if self.whole(states):
            p = m.new(m_heads * self.pixels * states)
            a = m.new(r * self.channels)
            return (m.new(r * self.channels) if self.samples > 1 else a), p
        a = m.new(r * self.channels)
        return a, m.new(m_heads * self.pixels, 4)

    def _feed(self, m: Meter, h: Block) -> tuple[Block, Any]:
        r, c = self.count, self.channels
        n = m.new(r * c)
        u = rows(m, self.geglu, r)
        gelu = None if self.kernels else m.new(r * 4 * c)
        f = m.new(r * 4 * c)
        y = rows(m, self.ff_out, r)
        if self.keep:
            return y, (h, n, u, gelu, f)
        return y, (h, None, u if self.level < Recompute.FEED_FORWARD else None, None, None)

    def backward(self, m: Meter, saved: Any, dy: Block, needs: bool) -> Block | None:
        r, c = self.count, self.channels
        if self.level >= Recompute.TRANSFORMER:
            _, saved = self._forward(m, saved[0])
        x, normed, own, caption, feed, last = saved
        del saved
        dh = rows_back(m, self.proj_out, r)
        del last
        dh = self._feed_back(m, feed, dh)
        del feed
        dh = self._attention_back(m, caption, dh, self.query, self.out2, self.states)
        del caption
        dh = self._attention_back(m, own, dh, self.qkv, self.out1, self.pixels)
        del own
        if normed is None:
            normed = m.new(r * c)
        if not needs:
            return None
        dnormed = rows_back(m, self.proj_in, r)
        dx = m.new(r * c)
        del dnormed, x
        return dx

    def _feed_back(self, m: Meter, saved: Any, dy: Block) -> Block:
        r, c = self.count, self.channels
        h, n, u, gelu, f = saved
        del saved
        n = n or m.new(r * c)
        u = u or rows(m, self.geglu, r)
        if f is None:
            gelu, f = None if self.kernels else m.new(r * 4 * c), m.new(r * 4 * c)
        df = rows_back(m, self.ff_out, r)
        del f, df, gelu
        dn = rows_back(m, self.geglu, r)
        dx = m.new(r * c)
        del dn, h, n, u, dy
        return dx

    def _attention_back(self, m: Meter, saved: Any, dy: Block, projection: Linear, out: Linear, states: int) -> Block:
        r, c = self.count, self.channels
        h, n, heads, a, kept, caption = saved
        del saved
        own = projection.modules == 3
        whole = self.whole(states)
        do = rows_back(m, out, r)
        if whole and self.samples > 1:
            do = m.new(r * c)
        keys = 2 * self.samples * states * c
        if own:
            d = m.new(3 * r * c)
            if whole:
                p = m.new(kept.size, 1)
                del p
            if not whole or self.samples > 1:
                d = m.new(3 * r * c)
        else:
            caption = caption or m.new(keys)
            d = m.new(r * c)
            dkv = m.new(keys)
            if whole:
                p = m.new(kept.size, 1)
                del p
            dkv2 = m.new(keys)
            del dkv, dkv2
        del do, heads, a, kept, caption
        n = n or m.new(r * c)
        dn = rows_back(m, projection, r)
        dx = m.new(r * c)
        del dn, d, h, n
        return dx


@dataclass(frozen=True)
class Resnet:
    inputs: int
    channels: int
    samples: int
    pixels: int
    level: Recompute
    scratch: bool
    """Whether SiLU's result is written into the convolutions' own buffers."""
    kernels: bool

    @property
    def keep(self) -> bool:
        return self.level < Recompute.ELEMENTWISE and not self.kernels

    def forward(self, m: Meter, x: Block) -> tuple[Block, Any]:
        i, o = (self.samples * self.pixels * each for each in (self.inputs, self.channels))
        n1 = m.new(i)
        h = m.new(o)
        n1 = n1 if self.keep else None  # type: ignore[assignment]
        n2 = m.new(o)
        y = m.new(o)
        if self.inputs != self.channels and not self.scratch:
            straight = m.new(o)
            del straight
        if self.level >= Recompute.BLOCK:
            return y, (x, None, None, None)
        return y, (x, n1, h, n2 if self.keep else None)

    def backward(self, m: Meter, saved: Any, dy: Block, needs: bool) -> Block | None:
        x, n1, h, n2 = saved
        i, o = (self.samples * self.pixels * each for each in (self.inputs, self.channels))
        if h is None:
            n = m.new(i)
            h = m.new(o)
            del n
            n2 = m.new(o)
        if self.kernels:
            d = m.new(o)
            d = m.new(o)
            del h, n2, saved
            d = m.new(i)
            return m.new(i)
        n2 = n2 or m.new(o)
        d = m.new(o)
        s = m.new(o)
        d = m.new(o)
        del n2, s
        n1 = n1 or m.new(i)
        d = m.new(i)
        d = m.new(i)
        del n1
        dx = m.new(i)
        del d, x, h, dy
        return dx
