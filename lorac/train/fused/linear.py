"""A linear layer with its LoRA, as the fused operations use it: forward, and backward without autograd.

    y = x Wᵀ + s · (x downᵀ) upᵀ + b

The fused operations never look at a weight. Rows are the tokens of all samples; where several LoRAs are trained at
once, those of the first LoRA come first.

Shape suffixes: R rows, O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorac.train.fused.gradients import StackGradients


class Adapted:
    """Neighbouring modules of a stack that share their input, as one layer: their outputs beside each other.

    `x_RI` given to a backward is what forward got, kept or computed again; it must stay unchanged until the gradients
    of the stack are finished, and so must `dy_RO`.
    """

    records = True

    def __init__(self, gradients: StackGradients, first: int, count: int = 1) -> None:
        stack = gradients.stack
        self._weight_OI = stack.merged_MOI[first : first + count].flatten(0, 1)
        biases: list[Tensor] = [layer.bias for layer in stack.layers[first : first + count] if layer.bias is not None]
        self._bias_O = torch.cat(biases).detach() if biases else None
        self._gradients, self._first, self._count = gradients, first, count

    def rows(self, x_RI: Tensor, plus_RO: Tensor | None = None, times: float = 1.0) -> Tensor:
        """(R, O): `times` y, and then `plus_RO`."""
        if plus_RO is not None:
            y_RO = torch.addmm(plus_RO, x_RI, self._weight_OI.t(), alpha=times)
            return y_RO if self._bias_O is None else y_RO.add_(self._bias_O, alpha=times)
        if self._bias_O is None:
            return x_RI.mul(times) @ self._weight_OI.t() if times != 1.0 else x_RI @ self._weight_OI.t()
        return torch.addmm(self._bias_O, x_RI, self._weight_OI.t(), beta=times, alpha=times)

    def columns(self, x_RI: Tensor) -> Tensor:
        """The same as (O, R), contiguous: channels before rows."""
        if self._bias_O is None:
            return torch.mm(self._weight_OI, x_RI.t())
        return torch.addmm(self._bias_O[:, None], self._weight_OI, x_RI.t())

    def backward(self, x_RI: Tensor, dy_RO: Tensor, plus_RI: Tensor | None = None) -> Tensor:
        """The gradient of `x_RI` (R, I), and `plus_RI`. `dy_RO` may be a transposed view."""
        self.record(x_RI, dy_RO)
        return dy_RO @ self._weight_OI if plus_RI is None else torch.addmm(plus_RI, dy_RO, self._weight_OI)

    def backward_columns(self, x_RI: Tensor, dy_RO: Tensor) -> Tensor:
        """The gradient of `x_RI` as (I, R), contiguous."""
        self.record(x_RI, dy_RO)
        return torch.mm(self._weight_OI.t(), dy_RO.t())

    def record(self, x_RI: Tensor, dy_RO: Tensor) -> None:
        """Backward where nobody wants the gradient of `x_RI`."""
        self._gradients.record(self._first, self._count, x_RI, dy_RO)
