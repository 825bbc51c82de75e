"""LoRA (Hu et al. 2021, arXiv:2106.09685) on the modules that kohya's `networks/lora.py` trains in SD1.x.

    y = x (W + s · up · down)ᵀ + b,   down: (rank, in),  up: (out, rank),  s = alpha / rank · strength

Factors of like modules are stored stacked, so that a step handles some forty tensors instead of 528. A layer computes
in one of two forms with equal results:

  merged   The layers read `W + s · up · down` from a buffer that `refresh` fills, one `baddbmm` for a whole stack. It
           costs the adapted weights once more in memory, and nothing in the layers. Autograd does not see the factors;
           `lorac.train.fused` trains them.
  added    `x Wᵀ + s · (x downᵀ) upᵀ`, the textbook form, differentiable as it stands, for models with large weights.

Shape suffixes: M modules of a stack, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.errors import InputError, Problem
from lorac.rng import seed64
from lorac.sd.layers import Linear
from lorac.sd.lora_names import PARTS, Part, Target, modules

MERGED_LIMIT = 64 * 2**20
"""Largest total size in bytes of the adapted base weights for which the merged form is used."""


class _Merged:
    """The merged form of one layer."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI = weight_OI

    def __call__(self, x: Tensor, layer: Linear) -> Tensor:
        return F.linear(x, self.weight_OI, layer.bias)


class _Added:
    """The added form of one layer; the factors have the base's dtype here."""

    def __init__(self, down_RI: Tensor, up_OR: Tensor, scale: float) -> None:
        self.down_RI, self.up_OR, self.scale = down_RI, up_OR, scale

    def __call__(self, x: Tensor, layer: Linear) -> Tensor:
        change = F.linear(F.linear(x, self.down_RI), self.up_OR)
        return torch.add(F.linear(x, layer.matrix, layer.bias), change, alpha=self.scale)


class Stack:
    """Modules of one part with equal weight shapes and equally many rows of input; the factors are two parameters.

    down_MRI: kaiming-uniform with a = √5 as in kohya and PEFT, each module from a seed of its own; up_MOR: zeros.
    merged_MOI: the weights of the merged form, of the base's dtype; empty in the added form.
    """

    def __init__(self, pairs: Sequence[tuple[Target, Linear]], rank: int, seed: int, merged: bool) -> None:
        self.targets = tuple(target for target, _ in pairs)
        self.layers = tuple(layer for _, layer in pairs)
        self.part = self.targets[0].part
        weight_OI = self.layers[0].matrix
        outputs, inputs = weight_OI.shape
        down_MRI = torch.stack([_draw_down(target, rank, inputs, seed) for target in self.targets])
        up_MOR = torch.zeros(len(pairs), outputs, rank)
        self.down_MRI = nn.Parameter(down_MRI.to(weight_OI.device))
        self.up_MOR = nn.Parameter(up_MOR.to(weight_OI.device))
        self._base_MOI = torch.stack([layer.matrix.detach() for layer in self.layers]) if merged else torch.empty(0)
        self.merged_MOI = self._base_MOI.clone()

    @torch.no_grad()
    def merge(self, scale: float) -> None:
        """Compute the merged weights from the current factors."""
        if self.merged_MOI.dtype == torch.float32:
            torch.baddbmm(self._base_MOI, self.up_MOR, self.down_MRI, alpha=scale, out=self.merged_MOI)
        else:
            self.merged_MOI.copy_(torch.baddbmm(self._base_MOI.float(), self.up_MOR, self.down_MRI, alpha=scale))

    def attach_merged(self) -> None:
        """Let the layers read the merged weights, now and after each `merge`."""
        for layer, weight_OI in zip(self.layers, self.merged_MOI, strict=True):
            layer.lora = _Merged(weight_OI)

    def attach_added(self, scale: float) -> None:
        """Attach the added form with the current factors, in the autograd graph if gradients are enabled."""
        dtype = self.layers[0].weight.dtype
        factors = zip(self.down_MRI.to(dtype).unbind(), self.up_MOR.to(dtype).unbind(), strict=True)
        for layer, (down_RI, up_OR) in zip(self.layers, factors, strict=True):
            layer.lora = _Added(down_RI, up_OR, scale)


def _draw_down(target: Target, rank: int, inputs: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed64(seed, "lora_down", target.index))
    # kaiming_uniform(a=√5) over `inputs` is uniform in ±√(6 / ((1 + 5) · inputs)).
    return torch.empty(rank, inputs).uniform_(-1.0, 1.0, generator=generator).div_(math.sqrt(inputs))


class LoRANetwork:
    """A LoRA attached to a U-Net and, if wanted, to a text encoder. The base gets no gradients.

    Factors are float32 on the device of the layer; their initial values depend on (seed, module) alone. Call `refresh`
    when the factors have changed.
    """

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module,
        rank: int,
        alpha: float,
        targets: Collection[str] = PARTS,
        seed: int = 0,
        merged: bool | None = None,
    ) -> None:
        """`merged` None chooses the form by `MERGED_LIMIT`."""
        self.rank, self.alpha, self.strength = rank, alpha, 1.0
        models: dict[Part, nn.Module] = {"unet": unet, "text_encoder": text_encoder}
        for model in models.values():
            model.requires_grad_(False)
        groups: dict[tuple[str, torch.Size], list[tuple[Target, Linear]]] = {}
        for target in modules(targets):
            layer = models[target.part].get_submodule(target.path)
            assert isinstance(layer, Linear), target.path
            groups.setdefault((target.rows, layer.matrix.shape), []).append((target, layer))
        size = sum(layer.weight.nbytes for pairs in groups.values() for _, layer in pairs)
        self.merged = size <= MERGED_LIMIT if merged is None else merged
        self.stacks = [Stack(pairs, rank, seed, self.merged) for pairs in groups.values()]
        self.refresh()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank * self.strength

    def parameters(self, part: Part) -> list[nn.Parameter]:
        """The stacked factors of one part, down and up in turn."""
        return [factor for stack in self.stacks if stack.part == part for factor in (stack.down_MRI, stack.up_MOR)]

    def refresh(self) -> None:
        """Attach the current factors to the layers."""
        for stack in self.stacks:
            if self.merged:
                stack.merge(self.scale)
                stack.attach_merged()
            else:
                stack.attach_added(self.scale)

    def set_strength(self, strength: float) -> None:
        """Multiply the LoRA by `strength` from now on, as `<lora:NAME:strength>` does; 0 is the bare base."""
        self.strength = strength
        self.refresh()

    def detach(self) -> None:
        """Give the model back as it was; `refresh` attaches the LoRA again."""
        for stack in self.stacks:
            for layer in stack.layers:
                layer.lora = None

    def state(self) -> dict[str, Tensor]:
        """The LoRA under kohya's names: `.lora_down.weight` (R, I), `.lora_up.weight` (O, R), `.alpha` ().

        1×1 convolutions have (R, I, 1, 1) and (O, R, 1, 1). The factors are views, float32.
        """
        factors = {factor: factor.detach() for part in PARTS for factor in self.parameters(part)}
        alphas = {f"{target.name}.alpha": torch.tensor(self.alpha) for stack in self.stacks for target in stack.targets}
        return self.named(factors) | alphas

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the factors from `tensors`, which may hold more than this LoRA.

        Raises InputError if a factor is missing, or was made with another rank or alpha or for another base.
        """
        for name, tensor in self.state().items():
            given = tensors.get(name)
            if given is None or given.shape != tensor.shape:
                shape = "nothing" if given is None else f"shape {list(given.shape)}"
                cause = f"this LoRA has {shape} where shape {list(tensor.shape)} is needed"
                raise InputError([Problem(name, cause, "use the rank, the targets and the base it was trained with")])
            if tensor.dim() == 0 and given.item() != tensor.item():
                cause = f"this LoRA has alpha {given.item():g} where {tensor.item():g} is needed"
                raise InputError([Problem(name, cause, f"set network.alpha to {given.item():g}")])
            tensor.copy_(given)
        self.refresh()

    def named(self, tensors: Mapping[nn.Parameter, Tensor]) -> dict[str, Tensor]:
        """One tensor for each factor, of its shape (itself, or an optimiser's moment of it), under kohya's names.

        The result consists of views.
        """
        views = {}
        for stack in self.stacks:
            for i, (target, layer) in enumerate(zip(stack.targets, stack.layers, strict=True)):
                down_RI, up_OR = tensors[stack.down_MRI][i], tensors[stack.up_MOR][i]
                ones = (1,) * (layer.weight.dim() - 2)
                views[f"{target.name}.lora_down.weight"] = down_RI.view(*down_RI.shape, *ones)
                views[f"{target.name}.lora_up.weight"] = up_OR.view(*up_OR.shape, *ones)
        return views
