"""A layer of the CLIP text encoder with its LoRA as one differentiable operation; see `transformer.py`.

Shape suffixes: B batch, L = 77 tokens, C channels, R = B · L rows, F channels of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.train.fused.attention import Attention, attention_for
from lorac.train.fused.backends import Choice
from lorac.train.fused.norms import layer_norm, layer_norm_backward
from lorac.train.switches import Recompute

QUICK = 1.702
"""CLIP's activation is `x · sigmoid(1.702 x)`, which is `silu(1.702 x) / 1.702`."""


class FusedTextLayer:
    """`y = forward(x)` and its gradient. `adapted(path, count)` finds the layers below this one."""

    def __init__(
        self,
        module: nn.Module,
        head_count: int,
        adapted: Callable[[str, int], Any],
        recompute: Recompute,
        choice: Choice,
    ) -> None:
        self.norms: tuple[Any, Any] = (module.layer_norm1, module.layer_norm2)
        self.heads, self.choice = head_count, choice
        self.kvq, self.out = adapted("self_attn.k_proj", 3), adapted("self_attn.out_proj", 1)
        self.fc1, self.fc2 = adapted("mlp.fc1", 1), adapted("mlp.fc2", 1)
        self.keep, self.again = recompute < Recompute.ELEMENTWISE, recompute >= Recompute.TRANSFORMER

    def _form(self, x_BLC: Tensor) -> Attention:
        _, tokens, channels = x_BLC.shape
        return attention_for(
            self.heads, tokens, tokens, channels, x_BLC.device, keep=True, choice=self.choice, causal=True
        )

    def forward(self, x_BLC: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """(output like `x_BLC`, what backward needs)."""
        y_BLC, saved = self._forward(x_BLC)
        return y_BLC, (x_BLC,) if self.again else saved

    def _forward(self, x_BLC: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        form, batch = self._form(x_BLC), len(x_BLC)
        h1_RC = x_BLC.flatten(0, 1)
        n1_RC, stats1 = layer_norm(self.norms[0], h1_RC)
        k, v, q = form.project(self.kvq, n1_RC, 3, batch)
        a_RC, kept = form.mix((q, k, v), batch)
        h2_RC = self.out.rows(a_RC, h1_RC)

        n2_RC, stats2 = layer_norm(self.norms[1], h2_RC)
        u_RF = self.fc1.rows(n2_RC, times=QUICK)
        f_RF = _activation(u_RF)
        y_RC = self.fc2.rows(f_RF, h2_RC)
        again = (n1_RC, n2_RC, f_RF) if self.keep else (None, None, None)
        return y_RC.view(x_BLC.shape), (h1_RC, stats1, (q, k, v), kept, a_RC, h2_RC, stats2, u_RF, again)

    def backward(self, saved: tuple[Any, ...], dy_BLC: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None]:
        """The gradient of `x_BLC`; the lowest layer's input, the embeddings, needs none."""
        if self.again:
            _, saved = self._forward(*saved)
        h1_RC, stats1, (q, k, v), kept, a_RC, h2_RC, stats2, u_RF, (n1_RC, n2_RC, f_RF) = saved
        form, batch = self._form(dy_BLC), len(dy_BLC)
        dh_RC = dy_BLC.flatten(0, 1)
        df_RF = self.fc2.backward(_activation(u_RF) if f_RF is None else f_RF, dh_RC)
        du_RF: Tensor = torch.ops.aten.silu_backward(df_RF, u_RF)
        n2_RC = layer_norm(self.norms[1], h2_RC)[0] if n2_RC is None else n2_RC
        dh_RC = layer_norm_backward(self.norms[1], self.fc1.backward(n2_RC, du_RF), h2_RC, stats2, dh_RC)

        do = form.gradient(self.out, a_RC, dh_RC, batch)
        dkvq_RO = form.own_backward(do, (q, k, v), a_RC, kept, batch, order="kvq")
        n1_RC = layer_norm(self.norms[0], h1_RC)[0] if n1_RC is None else n1_RC
        if not needs[0]:
            self.kvq.record(n1_RC, dkvq_RO)
            return (None,)
        dx_RC = layer_norm_backward(self.norms[0], self.kvq.backward(n1_RC, dkvq_RO), h1_RC, stats1, dh_RC)
        return (dx_RC.view(dy_BLC.shape),)


def _activation(u_RF: Tensor) -> Tensor:
    """CLIP's activation of u / 1.702."""
    return F.silu(u_RF).mul_(1 / QUICK)
