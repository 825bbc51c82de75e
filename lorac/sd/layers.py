"""The layers that a LoRA can attach to, in the U-Net and in the text encoder alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(Protocol):
    """A layer with a place for a LoRA: `forward` is `lora(x, self)` where there is one."""

    lora: Branch | None

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    @property
    def channels(self) -> int:
        """The dimension of inputs and outputs that holds channels: -1, or 1 of an image."""
        ...

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation with another weight, which may have another number of outputs."""
        ...

    def project(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        """A matrix on the channels of `x`, which is like an output of the layer."""
        ...


class Branch(Protocol):
    """What a LoRA network puts on a layer: it computes the layer's output, LoRA included."""

    def __call__(self, x: Tensor, layer: Layer) -> Tensor: ...


class Linear(nn.Module):
    """`y = x Wᵀ + b` over the last dimension, with a place for a LoRA.

    weight: (out, in), or (out, in, 1, 1) for a 1×1 convolution that is applied to tokens (SD1.x's `proj_in` and
    `proj_out`); bias: (out,) or None. Real checkpoints therefore load unchanged.
    """

    channels = -1

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

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight.flatten(1), bias)

    def project(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        return F.linear(x, weight_OI)


class Dense(nn.Linear):
    """torch's linear layer with a place for a LoRA: for `time_emb_proj`, which the U-Net computes outside of it."""

    channels = -1
    lora: Branch | None = None

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def project(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        return F.linear(x, weight_OI)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) if self.lora is None else self.lora(x, self)


class Conv2d(nn.Conv2d):
    """torch's convolution with a place for a LoRA."""

    channels = 1
    lora: Branch | None = None

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = self._conv_forward(x, weight, bias)
        return output

    def project(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        return F.conv2d(x, weight_OI[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.bias) if self.lora is None else self.lora(x, self)


def joined(layers: Sequence[Layer]) -> Tensor:
    """The weights (O, I) of all layers below each other; from then on the layers' weights are views of this."""
    if len(layers) == 1:
        return layers[0].weight.detach().flatten(1)
    weight_YI = torch.cat([layer.weight.detach().flatten(1) for layer in layers])
    for layer, weight_OI in zip(layers, torch.split(weight_YI, [len(layer.weight) for layer in layers]), strict=True):
        layer.weight.data = weight_OI.view(layer.weight.shape)
    return weight_YI
