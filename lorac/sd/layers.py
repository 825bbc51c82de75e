"""The linear layer that a LoRA can attach to, in the U-Net and in the text encoder alike."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Branch(Protocol):
    """What a LoRA network puts on a layer: it computes the layer's output, LoRA included."""

    def __call__(self, x: Tensor, layer: Linear) -> Tensor: ...


class Linear(nn.Module):
    """`y = x Wᵀ + b` over the last dimension, with a place for a LoRA.

    weight: (out, in), or (out, in, 1, 1) for a 1×1 convolution that is applied to tokens (SD1.x's `proj_in` and
    `proj_out`); bias: (out,) or None. Real checkpoints therefore load unchanged.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, pointwise_conv: bool = False) -> None:
        super().__init__()
        shape = (out_features, in_features, 1, 1) if pointwise_conv else (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.lora: Branch | None = None

    @property
    def matrix(self) -> Tensor:
        """The weight as (out, in)."""
        return self.weight.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.lora is not None:
            return self.lora(x, self)
        return F.linear(x, self.matrix, self.bias)
