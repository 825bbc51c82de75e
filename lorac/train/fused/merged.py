"""The merged form of `linear.Adapted`: `y = x (W + s · up · down)ᵀ + b`, a weight for each network.

Shape suffixes: see `linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.products import apart, beside, product, sum_of_products


class MergedForm:
    """Modules of a stack from `first` on."""

    def __init__(self, gradients: StackGradients, first: int, count: int) -> None:
        stack = gradients.stack
        self._weight_NKOI = stack.merged_NMOI[:, first : first + count]
        self._weight_NYI = self._weight_NKOI.flatten(1, 2)
        biases: list[Tensor] = [layer.bias for layer in stack.layers[first : first + count] if layer.bias is not None]
        self._bias_Y = torch.cat(biases).detach() if biases else None
        self._gradients, self._first, self._count = gradients, first, count

    def rows(self, x_NLI: Tensor, plus_RY: Tensor | None, times: float) -> Tensor:
        if len(x_NLI) == 1:
            return self._rows_of_one(x_NLI[0], plus_RY, times)
        weight_NIY = self._weight_NYI.mT
        if plus_RY is not None:
            plus_NLY = plus_RY.view(*x_NLI.shape[:2], -1)
            y_NLY = torch.baddbmm(plus_NLY, x_NLI, weight_NIY, alpha=times)
            y_NLY = y_NLY if self._bias_Y is None else y_NLY.add_(self._bias_Y, alpha=times)
        elif self._bias_Y is not None:
            y_NLY = torch.baddbmm(self._bias_Y, x_NLI, weight_NIY, beta=times, alpha=times)
        else:
            y_NLY = product(x_NLI, weight_NIY, times)
        return y_NLY.flatten(0, 1)

    def _rows_of_one(self, x_RI: Tensor, plus_RY: Tensor | None, times: float) -> Tensor:
        weight_IY = self._weight_NYI[0].t()
        if plus_RY is not None:
            y_RY = torch.addmm(plus_RY, x_RI, weight_IY, alpha=times)
            return y_RY if self._bias_Y is None else y_RY.add_(self._bias_Y, alpha=times)
        if self._bias_Y is None:
            return x_RI.mul(times) @ weight_IY if times != 1.0 else x_RI @ weight_IY
        return torch.addmm(self._bias_Y, x_RI, weight_IY, beta=times, alpha=times)

    def columns(self, x_NLI: Tensor, samples: int) -> Tensor:
        networks, rows, _ = x_NLI.shape
        if networks == 1:
            y_YR = self._columns_of_one(x_NLI[0])
            return y_YR if samples == 1 else apart(y_YR.view(self._count, 1, -1, rows), samples)
        weight_KNOI, x_NIL = self._weight_NKOI.transpose(0, 1), x_NLI.mT
        y_KNOL = x_NLI.new_empty(*weight_KNOI.shape[:3], rows)
        for k, (y_NOL, weight_NOI) in enumerate(zip(y_KNOL, weight_KNOI, strict=True)):
            if self._bias_Y is None:
                torch.bmm(weight_NOI, x_NIL, out=y_NOL)
            else:
                bias_O1 = self._bias_Y.view(self._count, -1, 1)[k]
                torch.baddbmm(bias_O1, weight_NOI, x_NIL, out=y_NOL)
        return apart(y_KNOL, samples)

    def _columns_of_one(self, x_RI: Tensor) -> Tensor:
        weight_YI = self._weight_NYI[0]
        if self._bias_Y is None:
            return torch.mm(weight_YI, x_RI.t())
        return torch.addmm(self._bias_Y[:, None], weight_YI, x_RI.t())

    def backward(self, x_NLI: Tensor, dy_KNLO: Tensor, plus_RI: Tensor | None) -> Tensor:
        self.record(x_NLI, dy_KNLO)
        if len(x_NLI) == 1:
            dy_RY, weight_YI = beside(dy_KNLO)[0], self._weight_NYI[0]
            return dy_RY @ weight_YI if plus_RI is None else torch.addmm(plus_RI, dy_RY, weight_YI)
        plus_NLI = None if plus_RI is None else plus_RI.view(x_NLI.shape)
        dx_NLI = sum_of_products(dy_KNLO, self._weight_NKOI.transpose(0, 1), plus_NLI)
        return dx_NLI.flatten(0, 1)

    def backward_columns(self, x_NLI: Tensor, dy_KNLO: Tensor, samples: int) -> Tensor:
        self.record(x_NLI, dy_KNLO)
        if len(x_NLI) == 1:
            dx_NIL = torch.mm(self._weight_NYI[0].t(), beside(dy_KNLO)[0].t())[None]
        else:
            dx_NIL = sum_of_products(self._weight_NKOI.transpose(0, 1).mT, dy_KNLO.mT)
        return apart(dx_NIL[None], samples)

    def record(self, x_NLI: Tensor, dy_KNLO: Tensor) -> None:
        self._gradients.record(self._first, x_NLI, dy_KNLO)
