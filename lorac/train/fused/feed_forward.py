"""A transformer's feed-forward layers: LayerNorm, a projection to (value, gate), `value · gelu(gate)`, and back.

Shape suffixes: R rows, C channels, F = 4 · C, O = 2 · F.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.kernels import gate
from lorac.kernels.geglu import geglu_backward, geglu_forward
from lorac.train.fused.frozen import Product
from lorac.train.fused.norms import Stats, layer_norm, layer_norm_backward
from lorac.train.switches import Recompute


class FusedFeedForward:
    """`h + feed_forward(layer_norm(h))` and its gradient."""

    def __init__(self, norm: nn.LayerNorm, geglu: Product, out: Product, recompute: Recompute) -> None:
        self.norm, self.geglu, self.out = norm, geglu, out
        self.keep = recompute < Recompute.ELEMENTWISE
        self.keep_projection = recompute < Recompute.FEED_FORWARD

    def forward(self, h_RC: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output, what backward needs)."""
        n_RC, stats = layer_norm(self.norm, h_RC)
        u_RO = self.geglu.rows(n_RC)
        gelu_RF, f_RF = _gated(u_RO)
        y_RC = self.out.rows(f_RF, h_RC)
        if self.keep:
            return y_RC, (h_RC, stats, n_RC, u_RO, gelu_RF, f_RF)
        return y_RC, (h_RC, stats, None, u_RO if self.keep_projection else None, None, None)

    def backward(self, saved: tuple[Any, ...], dy_RC: Tensor) -> Tensor:
        """The gradient of `h_RC`."""
        h_RC, stats, n_RC, u_RO, gelu_RF, f_RF = saved
        del saved
        stats_RC: Stats = stats
        if n_RC is None and (self.geglu.records or u_RO is None):
            n_RC = layer_norm(self.norm, h_RC)[0]
        if u_RO is None:
            u_RO = self.geglu.rows(n_RC)
        if f_RF is None:
            gelu_RF, f_RF = _gated(u_RO)
        df_RF = self.out.backward(f_RF, dy_RC)
        del f_RF
        _backward_through_gate(u_RO, df_RF, gelu_RF)
        del df_RF, gelu_RF
        dn_RC = self.geglu.backward(h_RC if n_RC is None else n_RC, u_RO)
        return layer_norm_backward(self.norm, dn_RC, h_RC, stats_RC, dy_RC)


def _gated(u_RO: Tensor) -> tuple[Tensor | None, Tensor]:
    """(gelu of the gate, which the kernel has no use for, value · gelu of the gate)."""
    if gate.opens(u_RO, "geglu"):
        return None, geglu_forward(u_RO)
    value_RF, gate_RF = u_RO.chunk(2, dim=1)
    gelu_RF = F.gelu(gate_RF)
    return gelu_RF, value_RF * gelu_RF


def _backward_through_gate(u_RO: Tensor, df_RF: Tensor, gelu_RF: Tensor | None) -> None:
    """The projection is ours and seen for the last time: its gradient takes its place."""
    if gelu_RF is None:
        geglu_backward(df_RF, u_RO, u_RO)
        return
    value_RF, gate_RF = u_RO.chunk(2, dim=1)
    torch.mul(df_RF, value_RF, out=value_RF)
    torch.ops.aten.gelu_backward.grad_input(value_RF, gate_RF, grad_input=gate_RF)
    torch.mul(df_RF, gelu_RF, out=value_RF)
