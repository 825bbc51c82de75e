"""The added form of `linear.Adapted`: `y = x Wᵀ + s · (x downᵀ) upᵀ + b`, one frozen weight for all networks.

The frozen product runs over the rows of all networks at once. Those of the factors are batched: neighbouring modules of
one network, or one module of all networks; up factors add into the frozen product's result where it lies.

Shape suffixes: see `linear`; M = K · R rows of the down factors, R rank.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lorac.kernels import lora_linear
from lorac.sd.layers import joined
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.products import apart, batches, beside, of_rows


class AddedForm:
    """Modules of a stack from `first` on."""

    def __init__(self, gradients: StackGradients, first: int, count: int, keeps: bool) -> None:
        stack = gradients.stack
        layers = stack.layers[first : first + count]
        self._weight_YI = joined(layers)
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self._bias_Y = torch.cat(biases).detach() if biases else None
        self._stack, self._gradients, self._first, self._count = stack, gradients, first, count
        self._read_down_NMI = stack.read_down_NMRI[:, first : first + count].flatten(1, 2)
        self._read_up_KNOR = stack.read_up_NMOR[:, first : first + count].transpose(0, 1)
        self._batches = batches(count, len(stack))
        self._keeps = keeps
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def _down(self) -> Tensor:
        """In the base's dtype, cast where no such copy is held."""
        return self._read_down_NMI.to(self._weight_YI.dtype)

    @property
    def _up(self) -> Tensor:
        return self._read_up_KNOR.to(self._weight_YI.dtype)

    def rows(self, x_NLI: Tensor, plus_RY: Tensor | None, times: float) -> Tensor:
        if lora_linear.opens(x_NLI):
            return self._rows_by_kernel(x_NLI, plus_RY, times)
        x_RI, weight_IY = x_NLI.reshape(-1, x_NLI.shape[2]), self._weight_YI.t()
        if plus_RY is None:
            y_RY = of_rows(x_RI, weight_IY, self._bias_Y, times, beta=times)
        elif not x_RI.is_cpu and self._bias_Y is not None:  # where a product would copy `plus_RY` before it adds to it
            y_RY = torch.add(plus_RY, self._bias_Y, alpha=times).addmm_(x_RI, weight_IY, alpha=times)
        else:
            y_RY = of_rows(x_RI, weight_IY, plus_RY, times)
            y_RY = y_RY if self._bias_Y is None else y_RY.add_(self._bias_Y, alpha=times)
        self._add_up(y_RY.view(*x_NLI.shape[:2], self._count, -1).permute(2, 0, 1, 3), self._middle(x_NLI), times)
        return y_RY

    def columns(self, x_NLI: Tensor, samples: int) -> Tensor:
        networks, rows, inputs = x_NLI.shape
        x_IR = x_NLI.reshape(-1, inputs).t()
        if self._bias_Y is None:
            y_YR = torch.mm(self._weight_YI, x_IR)
        else:
            y_YR = torch.addmm(self._bias_Y[:, None], self._weight_YI, x_IR)
        y_KNOL = y_YR.view(self._count, -1, networks, rows).transpose(1, 2).contiguous()
        self._add_up(y_KNOL.mT, self._middle(x_NLI))
        return apart(y_KNOL, samples)

    def backward(self, x_NLI: Tensor, dy_KNLO: Tensor, plus_RI: Tensor | None) -> Tensor:
        dy_RY = beside(dy_KNLO).flatten(0, 1)
        if lora_linear.opens(x_NLI):
            return self._backward_by_kernel(dy_RY, self.record(x_NLI, dy_KNLO), plus_RI)
        dx_RI = of_rows(dy_RY, self._weight_YI, plus_RI)
        dmiddle_NLM = self.record(x_NLI, dy_KNLO)
        dx_RI.view(x_NLI.shape).baddbmm_(dmiddle_NLM, self._down)
        return dx_RI

    def backward_columns(self, x_NLI: Tensor, dy_KNLO: Tensor, samples: int) -> Tensor:
        dy_RY = beside(dy_KNLO).flatten(0, 1)
        dx_IR = torch.mm(self._weight_YI.t(), dy_RY.t())
        dx_NIL = dx_IR.view(-1, *x_NLI.shape[:2]).transpose(0, 1).contiguous()
        dx_NIL.baddbmm_(self._down.mT, self.record(x_NLI, dy_KNLO).mT)
        return apart(dx_NIL[None], samples)

    def record(self, x_NLI: Tensor, dy_KNLO: Tensor) -> Tensor:
        """s · dy up (N, L, M), from which the gradient of x follows."""
        networks, rows, _ = x_NLI.shape
        dmiddle_NLKR = x_NLI.new_empty(networks, rows, self._count, self._read_up_KNOR.shape[3])
        dmiddle_KNLR = dmiddle_NLKR.permute(2, 0, 1, 3)
        up_KNOR = self._up
        for at in self._batches:
            torch.bmm(dy_KNLO[at], up_KNOR[at], out=dmiddle_KNLR[at])
        del up_KNOR
        dmiddle_NLM = self._scaled(dmiddle_NLKR.flatten(2))
        middle_KNLR = self._by_module(self._middle(x_NLI))
        self._gradients.record(self._first, x_NLI, dy_KNLO, (middle_KNLR, dmiddle_KNLR))
        self._kept = None
        return dmiddle_NLM

    def forget(self) -> None:
        """Backward will not come."""
        self._kept = None

    def _rows_by_kernel(self, x_NLI: Tensor, plus_RY: Tensor | None, times: float) -> Tensor:
        middle_NLM, up_KNOR = self._middle(x_NLI), self._read_up_KNOR
        y_RY: Tensor = lora_linear.lora_linear_forward(
            x_NLI, self._weight_YI, middle_NLM, up_KNOR, self._bias_Y, plus_RY, times
        )
        return y_RY

    def _backward_by_kernel(self, dy_RY: Tensor, dmiddle_NLM: Tensor, plus_RI: Tensor | None) -> Tensor:
        dx_RI: Tensor = lora_linear.lora_linear_backward(
            dy_RY, self._weight_YI, dmiddle_NLM, self._read_down_NMI, plus_RI
        )
        return dx_RI

    def _middle(self, x_NLI: Tensor) -> Tensor:
        """s · x downᵀ (N, L, M)."""
        if self._kept and _same(self._kept[0], x_NLI):
            return self._kept[1]
        middle_NLM = self._scaled(torch.bmm(x_NLI, self._down.mT))
        self._kept = (x_NLI, middle_NLM) if self._keeps else None
        return middle_NLM

    def _scaled(self, x_NLM: Tensor) -> Tensor:
        """`x_NLM`, multiplied in place by the scale of each network."""
        scales = self._stack.scales
        if len(set(scales)) > 1:
            return x_NLM.mul_(_beside_each_other(scales, x_NLM.dtype, x_NLM.device))
        return x_NLM if scales[0] == 1.0 else x_NLM.mul_(scales[0])

    def _by_module(self, middle_NLM: Tensor) -> Tensor:
        return middle_NLM.view(*middle_NLM.shape[:2], self._count, -1).permute(2, 0, 1, 3)

    def _add_up(self, y_KNLO: Tensor, middle_NLM: Tensor, times: float = 1.0) -> None:
        """`times` · middle upᵀ into `y_KNLO`."""
        middle_KNLR, up_KNOR = self._by_module(middle_NLM), self._up
        for at in self._batches:
            y_BLO = y_KNLO[at]
            y_BLO.baddbmm_(middle_KNLR[at], up_KNOR[at].mT, alpha=times)


@cache
def _beside_each_other(scales: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, 1, 1), made once: a copy to a card would wait for it."""
    return torch.tensor(scales, dtype=dtype, device=device)[:, None, None]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two living tensors are views of the same numbers."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
