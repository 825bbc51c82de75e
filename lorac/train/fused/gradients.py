"""Gradients of LoRA factors, for a whole stack at once, from what each layer saw and what came back to it.

A layer `y = x (W + s · up · down)ᵀ` with input rows x and gradient rows dy has dW = dyᵀ x, and

    d_up = s · dW downᵀ,   d_down = s · upᵀ dW.

Shape suffixes: M modules of a stack, L rows, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lorac.sd.lora_stack import Stack


class _Record(NamedTuple):
    """`modules` modules from `first` on saw `x`; the gradients of their outputs stand side by side in `dy`."""

    first: int
    modules: int
    x: Tensor
    dy: Tensor


class StackGradients:
    """Collects inputs and gradients of a stack's modules during one backward pass, then makes the factors' gradients.

    The gradients live in buffers that are written anew each time, or added to where `accumulating` is set before the
    backward pass; a module without a record gets zeros. `on_complete` is called when all modules are recorded.
    """

    def __init__(self, stack: Stack, on_complete: Callable[[StackGradients], None]) -> None:
        self.stack, self._on_complete = stack, on_complete
        self._down_MRI, self._up_MOR = torch.zeros_like(stack.down_MRI), torch.zeros_like(stack.up_MOR)
        self._weight_MOI = torch.zeros_like(stack.merged_MOI)
        self._records: list[_Record] = []
        self.accumulating = False

    def record(self, first: int, count: int, x_LI: Tensor, dy_LO: Tensor) -> None:
        """Both tensors must stay unchanged until `finish`."""
        self._records.append(_Record(first, count, x_LI, dy_LO))
        if sum(record.modules for record in self._records) == len(self.stack.layers):
            self._on_complete(self)

    @torch.no_grad()
    def finish(self) -> tuple[Tensor, Tensor]:
        """Set `grad` of both factors and forget the records; returns the norms of the two gradients."""
        if self._records and self._is_dense(len(self._records[0].x)):
            self._through_weights()
        elif self._records:
            self._through_rank()
        self._records = []
        self.stack.down_MRI.grad, self.stack.up_MOR.grad = self._down_MRI, self._up_MOR
        return torch.linalg.vector_norm(self._down_MRI), torch.linalg.vector_norm(self._up_MOR)

    def _is_dense(self, rows: int) -> bool:
        """Whether the way through dW takes fewer multiplications than the way through the rank."""
        _, outputs, rank = self.stack.up_MOR.shape
        inputs = self.stack.down_MRI.shape[2]
        return inputs * outputs * (rows + 2 * rank) <= 2 * rows * rank * (inputs + outputs)

    def _through_weights(self) -> None:
        for first, count, x_LI, dy_LO in self._records:
            torch.mm(dy_LO.t(), x_LI, out=self._weight_MOI[first : first + count].flatten(0, 1))
        weight_MOI, down_MRI, up_MOR = self._weight_MOI.float(), self.stack.down_MRI, self.stack.up_MOR
        beta = int(self.accumulating)
        torch.baddbmm(self._up_MOR, weight_MOI, down_MRI.mT, beta=beta, alpha=self.stack.scale, out=self._up_MOR)
        torch.baddbmm(self._down_MRI, up_MOR.mT, weight_MOI, beta=beta, alpha=self.stack.scale, out=self._down_MRI)

    def _through_rank(self) -> None:
        # Only the last layers of a text encoder can be missing (clip skip), so the recorded modules are the first ones.
        records = sorted(self._records, key=lambda record: record.first)
        x_MLI = torch.stack([x_LI for _, count, x_LI, _ in records for _ in range(count)]).float()
        dy_MLO = torch.stack([part for _, count, _, dy_LO in records for part in dy_LO.chunk(count, dim=1)]).float()
        recorded = len(x_MLI)
        down_MRI, d_down_MRI = self.stack.down_MRI[:recorded], self._down_MRI[:recorded]
        up_MOR, d_up_MOR = self.stack.up_MOR[:recorded], self._up_MOR[:recorded]
        beta = int(self.accumulating)
        torch.baddbmm(d_up_MOR, dy_MLO.mT, x_MLI @ down_MRI.mT, beta=beta, alpha=self.stack.scale, out=d_up_MOR)
        torch.baddbmm(d_down_MRI, (dy_MLO @ up_MOR).mT, x_MLI, beta=beta, alpha=self.stack.scale, out=d_down_MRI)
