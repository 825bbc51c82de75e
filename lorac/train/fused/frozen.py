"""Linear layers without a LoRA, and layers beside each other, with the methods of `linear.Adapted`.

Shape suffixes: R rows, O outputs, Y those of several layers beside each other, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lorac.sd.layers import Linear


class Product(Protocol):
    """A layer as the fused operations see it; `linear.Adapted` describes the methods.

    records: whether backward looks at the input that it is given; otherwise that may be any tensor of its shape.
    """

    records: bool

    def rows(self, x_RI: Tensor, plus_RO: Tensor | None = None, times: float = 1.0) -> Tensor: ...

    def columns(self, x_RI: Tensor) -> Tensor: ...

    def backward(self, x_RI: Tensor, dy_RO: Tensor, plus_RI: Tensor | None = None) -> Tensor: ...

    def backward_columns(self, x_RI: Tensor, dy_RO: Tensor) -> Tensor: ...

    def record(self, x_RI: Tensor, dy_RO: Tensor) -> object: ...


class Frozen:
    """A layer without a LoRA: nothing is recorded."""

    records = False

    def __init__(self, layer: Linear) -> None:
        self._weight_OI = layer.matrix.detach()
        self._bias_O = None if layer.bias is None else layer.bias.detach()

    def rows(self, x_RI: Tensor, plus_RO: Tensor | None = None, times: float = 1.0) -> Tensor:
        if self._bias_O is None:
            y_RO = torch.mm(x_RI, self._weight_OI.t())
        else:
            y_RO = torch.addmm(self._bias_O, x_RI, self._weight_OI.t())
        y_RO = y_RO if times == 1.0 else y_RO.mul_(times)
        return y_RO if plus_RO is None else y_RO.add_(plus_RO)

    def columns(self, x_RI: Tensor) -> Tensor:
        if self._bias_O is None:
            return torch.mm(self._weight_OI, x_RI.t())
        return torch.addmm(self._bias_O[:, None], self._weight_OI, x_RI.t())

    def backward(self, x_RI: Tensor, dy_RO: Tensor, plus_RI: Tensor | None = None) -> Tensor:
        return dy_RO @ self._weight_OI if plus_RI is None else torch.addmm(plus_RI, dy_RO, self._weight_OI)

    def backward_columns(self, x_RI: Tensor, dy_RO: Tensor) -> Tensor:
        return torch.mm(self._weight_OI.t(), dy_RO.t())

    def record(self, x_RI: Tensor, dy_RO: Tensor) -> object:
        """Nothing learns from it."""


class Beside:
    """Layers of equally many outputs with one input, computed one by one, their outputs beside each other."""

    def __init__(self, layers: Sequence[Product]) -> None:
        self._layers = layers
        self.records = any(layer.records for layer in layers)

    def rows(self, x_RI: Tensor, plus_RY: Tensor | None = None, times: float = 1.0) -> Tensor:
        y_RY = torch.cat([layer.rows(x_RI, None, times) for layer in self._layers], dim=1)
        return y_RY if plus_RY is None else y_RY.add_(plus_RY)

    def columns(self, x_RI: Tensor) -> Tensor:
        return torch.cat([layer.columns(x_RI) for layer in self._layers])

    def backward(self, x_RI: Tensor, dy_RY: Tensor, plus_RI: Tensor | None = None) -> Tensor:
        dx_RI = plus_RI
        for layer, dy_RO in self._with(dy_RY):
            dx_RI = layer.backward(x_RI, dy_RO, dx_RI)
        assert dx_RI is not None
        return dx_RI

    def backward_columns(self, x_RI: Tensor, dy_RY: Tensor) -> Tensor:
        return torch.stack([layer.backward_columns(x_RI, dy_RO) for layer, dy_RO in self._with(dy_RY)]).sum(0)

    def record(self, x_RI: Tensor, dy_RY: Tensor) -> object:
        for layer, dy_RO in self._with(dy_RY):
            layer.record(x_RI, dy_RO)
        return None

    def _with(self, dy_RY: Tensor) -> list[tuple[Product, Tensor]]:
        return list(zip(self._layers, dy_RY.chunk(len(self._layers), dim=1), strict=True))
