"""Small stacks of adapted layers for tests, and their definition in float64 under autograd.

Shape suffixes: N networks, K modules with one input, L rows of one network, Y = K · O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorac.sd.layers import Linear
from lorac.sd.lora_forms import Dropouts
from lorac.sd.lora_names import modules
from lorac.sd.lora_settings import Adapter
from lorac.sd.lora_stack import Stack


def layers_of(count: int, inputs: int, outputs: int, bias: bool) -> list[Linear]:
    """Frozen layers with random weights."""
    layers = [Linear(inputs, outputs, bias).requires_grad_(False) for _ in range(count)]
    for layer in layers:
        layer.weight.data.normal_(std=inputs**-0.5)
        if layer.bias is not None:
            layer.bias.data.normal_()
    return layers


def stack_of(layers: Sequence[Linear], merged: bool, rank: int, alpha: float) -> Stack:
    """A stack on `layers` with random factors."""
    pairs = [(Adapter(t, rank, alpha), layer) for t, layer in zip(modules(["unet"]), layers, strict=False)]
    stack = Stack(pairs, 1, merged, Dropouts(0, 0, 0))
    stack.up_MOR.data.normal_()
    stack.merge()
    return stack


class Definition:
    """What modules `first` to `first + count` of stacks on the same layers compute, and their gradients, in float64."""

    def __init__(self, stacks: Sequence[Stack], first: int, count: int) -> None:
        self.chosen = slice(first, first + count)
        self.scales = [stack.alpha / stack.rank for stack in stacks]
        self.downs = [stack.down_MRI[self.chosen, : stack.rank].detach().double().requires_grad_() for stack in stacks]
        self.ups = [stack.up_MOR[self.chosen, :, : stack.rank].detach().double().requires_grad_() for stack in stacks]
        self.layers = stacks[0].layers[self.chosen]

    def forward(self, x_NLI: Tensor) -> Tensor:
        """(N, L, Y)"""
        return torch.stack([self._one(n, x_LI) for n, x_LI in enumerate(x_NLI)])

    def _one(self, n: int, x_LI: Tensor) -> Tensor:
        outputs = []
        for layer, down, up in zip(self.layers, self.downs[n], self.ups[n], strict=True):
            y = x_LI @ layer.weight.double().flatten(1).T + self.scales[n] * (x_LI @ down.T) @ up.T
            outputs.append(y if layer.bias is None else y + layer.bias.double())
        return torch.cat(outputs, dim=1)

    def gradients(self, stacks: Sequence[Stack]) -> list[tuple[Tensor, Tensor]]:
        """(of the definition, of the stack) for each factor, without padding."""
        pairs = []
        for stack, down, up in zip(stacks, self.downs, self.ups, strict=True):
            assert stack.down_MRI.grad is not None and stack.up_MOR.grad is not None
            assert down.grad is not None and up.grad is not None
            assert not stack.down_MRI.grad[:, stack.rank :].any() and not stack.up_MOR.grad[..., stack.rank :].any()
            pairs.append((down.grad, stack.down_MRI.grad[self.chosen, : stack.rank]))
            pairs.append((up.grad, stack.up_MOR.grad[self.chosen, :, : stack.rank]))
        return pairs


def close(ours: Tensor, expected: Tensor, limit: float = 1e-5) -> bool:
    """Whether the difference is small beside the whole."""
    return ours.shape == expected.shape and bool((ours - expected).norm() <= limit * expected.norm())
