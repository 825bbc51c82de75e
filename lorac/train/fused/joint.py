"""Stacks of several networks on one base, their factors side by side, so that one product serves all of them.

Shape suffixes: N networks, M modules of a stack, O outputs, I inputs, R the largest rank of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_stack import Stack


class JointStack:
    """Stacks of the same modules, one of each network; ranks, alphas and learning rates may differ.

    From here on, the factors of each stack are slices of `down_NMRI` and `up_NMOR`, and its merged weights a slice of
    `merged_NMOI`, empty in the added form. Each stack works as before. Zeros fill up smaller ranks; their gradients are
    zeros, so that an optimiser leaves them.
    """

    def __init__(self, stacks: Sequence[Stack], copies: bool = True) -> None:
        """`copies`: whether the factors are held in the base's dtype too; else who reads them casts them."""
        first = stacks[0]
        if any(stack.targets != first.targets or stack.merged != first.merged for stack in stacks):
            raise ValueError("stacks of different modules or forms cannot be joined")
        self.stacks = tuple(stacks)
        self.layers, self.targets, self.part, self.merged = first.layers, first.targets, first.part, first.merged
        self.down_NMRI, self.up_NMOR, self.merged_NMOI = self._as_they_are() if len(stacks) == 1 else self._moved()
        readable = self._readable() if copies else (self.down_NMRI, self.up_NMOR)
        self.read_down_NMRI, self.read_up_NMOR = readable

    def __len__(self) -> int:
        """The number of networks."""
        return len(self.stacks)

    @property
    def scales(self) -> tuple[float, ...]:
        """By how much each network's change is multiplied: alpha / rank · strength."""
        return tuple(stack.scale for stack in self.stacks)

    def _as_they_are(self) -> tuple[Tensor, Tensor, Tensor]:
        """The only stack's tensors."""
        stack = self.stacks[0]
        return stack.down_MRI.detach()[None], stack.up_MOR.detach()[None], stack.merged_MOI[None]

    def _moved(self) -> tuple[Tensor, Tensor, Tensor]:
        """New tensors, in which the stacks lie beside each other."""
        first = self.stacks[0]
        modules, _, inputs = first.down_MRI.shape
        rank = max(stack.down_MRI.shape[1] for stack in self.stacks)
        down_NMRI = first.down_MRI.detach().new_zeros(len(self), modules, rank, inputs)
        up_NMOR = first.up_MOR.detach().new_zeros(len(self), modules, first.up_MOR.shape[1], rank)
        merged_NMOI = first.merged_MOI.new_empty(len(self), *first.merged_MOI.shape)
        for stack, down_MRI, up_MOR, merged_MOI in zip(self.stacks, down_NMRI, up_NMOR, merged_NMOI, strict=True):
            stack.join(down_MRI, up_MOR, merged_MOI, like=first)
        return down_NMRI, up_NMOR, merged_NMOI

    def _readable(self) -> tuple[Tensor, Tensor]:
        """Both factors in the base's dtype: what layers of the added form read."""
        dtype = self.layers[0].weight.dtype
        if self.merged or dtype == self.down_NMRI.dtype:
            return self.down_NMRI, self.up_NMOR
        down_NMRI, up_NMOR = self.down_NMRI.to(dtype), self.up_NMOR.to(dtype)
        for stack, down_MRI, up_MOR in zip(self.stacks, down_NMRI, up_NMOR, strict=True):
            stack.cast(down_MRI, up_MOR)
        return down_NMRI, up_NMOR


def joint_stacks(networks: Sequence[LoRANetwork], copies: bool = True) -> list[JointStack]:
    """The stacks of all networks, joined. Raises ValueError where they train different modules or in other groups."""
    if len({len(network.stacks) for network in networks}) != 1:
        raise ValueError("networks of different modules cannot be joined")
    return [JointStack(stacks, copies) for stacks in zip(*(network.stacks for network in networks), strict=True)]
