"""LoRA (Hu et al. 2021, arXiv:2106.09685) on the 264 modules that kohya's `networks/lora.py` trains in SD1.x.

    y = x (W + s · up · down)ᵀ + b,   down: (rank, in),  up: (out, rank),  s = alpha / rank · strength

Names come from tables, not from walking the model: libraries rename their modules, a web UI does not.

Factors of modules with equal weight shape are stored stacked, so that a step handles some fifteen tensors instead of
528. A layer then computes in one of two forms with equal results:

  merged   the step starts with `W + s · up · down` for a whole stack (one `baddbmm`), each layer runs one matrix
           product, and backward returns dW per layer, from which two `bmm` per stack make the factors' gradients.
           Costs the memory of the adapted weights twice, and saves five small operations in each of 264 layers.
  added    `x Wᵀ + s · (x downᵀ) upᵀ`, the textbook form, for models whose weights are large.

Shape suffixes: M modules of a stack, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.errors import InputError, Problem
from lorac.rng import seed64
from lorac.sd.layers import Linear

Part = Literal["text_encoder", "unet"]

PARTS: tuple[Part, ...] = ("text_encoder", "unet")
"""kohya's order, of modules as of parameter groups."""

MERGED_LIMIT = 64 * 2**20
"""Largest total size in bytes of the adapted base weights for which the merged form is used."""

_TEXT_LAYERS = 12
_TEXT_MODULES = (
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.q_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
_TRANSFORMERS = (
    *(f"down_blocks.{block}.attentions.{i}" for block in (0, 1, 2) for i in (0, 1)),
    "mid_block.attentions.0",
    *(f"up_blocks.{block}.attentions.{i}" for block in (1, 2, 3) for i in (0, 1, 2)),
)
_TRANSFORMER_MODULES = (
    "proj_in",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn1.to_k",
    "transformer_blocks.0.attn1.to_v",
    "transformer_blocks.0.attn1.to_out.0",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
    "transformer_blocks.0.attn2.to_q",
    "transformer_blocks.0.attn2.to_k",
    "transformer_blocks.0.attn2.to_v",
    "transformer_blocks.0.attn2.to_out.0",
    "proj_out",
)
_PATHS: dict[Part, tuple[str, ...]] = {
    "text_encoder": tuple(
        f"text_model.encoder.layers.{layer}.{module}" for layer in range(_TEXT_LAYERS) for module in _TEXT_MODULES
    ),
    "unet": tuple(f"{transformer}.{module}" for transformer in _TRANSFORMERS for module in _TRANSFORMER_MODULES),
}
_PREFIX: dict[Part, str] = {"text_encoder": "lora_te_", "unet": "lora_unet_"}


@dataclass(frozen=True)
class Target:
    """A module that gets a LoRA. `name` is kohya's, `path` the module's in its model, `index` counts all 264."""

    name: str
    path: str
    part: Part
    index: int


_TABLE = tuple(
    Target(_PREFIX[part] + path.replace(".", "_"), path, part, index)
    for index, (part, path) in enumerate((part, path) for part in PARTS for path in _PATHS[part])
)


def modules(targets: Collection[str]) -> list[Target]:
    """kohya's modules of the chosen parts: 72 of the text encoder first, then 192 of the U-Net."""
    return [target for target in _TABLE if target.part in targets]


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
        low_R = F.linear(x, self.down_RI)
        return torch.add(F.linear(x, layer.matrix, layer.bias), F.linear(low_R, self.up_OR), alpha=self.scale)


class Stack:
    """The modules of one part whose weights have the same shape, with their factors as two parameters.

    down_MRI: kaiming-uniform with a = √5 as in kohya and PEFT, each module from a seed of its own; up_MOR: zeros.
    """

    def __init__(self, targets: Sequence[Target], layers: Sequence[Linear], rank: int, seed: int) -> None:
        self.targets, self.layers = tuple(targets), tuple(layers)
        self.part = targets[0].part
        weight_OI = layers[0].matrix
        outputs, inputs = weight_OI.shape
        down_MRI = torch.stack([_draw_down(target, rank, inputs, seed) for target in targets])
        up_MOR = torch.zeros(len(targets), outputs, rank)
        self.down_MRI = nn.Parameter(down_MRI.to(weight_OI.device))
        self.up_MOR = nn.Parameter(up_MOR.to(weight_OI.device))

    def base(self) -> Tensor:
        """A copy of the frozen weights, (M, O, I)."""
        return torch.stack([layer.matrix.detach() for layer in self.layers])


def _draw_down(target: Target, rank: int, inputs: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed64(seed, "lora_down", target.index))
    # kaiming_uniform(a=√5) over `inputs` is uniform in ±√(6 / ((1 + 5) · inputs)).
    return torch.empty(rank, inputs).uniform_(-1.0, 1.0, generator=generator).div_(math.sqrt(inputs))


class LoRANetwork:
    """A LoRA attached to a U-Net and, if wanted, to a text encoder. The base gets no gradients.

    Factors are float32 on the device of the layer; their initial values depend on (seed, module) alone. Before each
    forward pass whose gradients count, call `refresh`.
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
        groups: dict[tuple[Part, torch.Size], list[tuple[Target, Linear]]] = {}
        for target in modules(targets):
            layer = models[target.part].get_submodule(target.path)
            assert isinstance(layer, Linear), target.path
            groups.setdefault((target.part, layer.matrix.shape), []).append((target, layer))
        self.stacks = [
            Stack([target for target, _ in pairs], [layer for _, layer in pairs], rank, seed)
            for pairs in groups.values()
        ]
        size = sum(layer.weight.nbytes for stack in self.stacks for layer in stack.layers)
        self.merged = size <= MERGED_LIMIT if merged is None else merged
        self._base = [stack.base() for stack in self.stacks] if self.merged else []
        self.refresh()

    @property
    def scale(self) -> float:
        return self.alpha / self.rank * self.strength

    def parameters(self, part: Part) -> list[nn.Parameter]:
        """The stacked factors of one part, down and up in turn."""
        return [factor for stack in self.stacks if stack.part == part for factor in (stack.down_MRI, stack.up_MOR)]

    def refresh(self) -> None:
        """Attach the current factors to the layers, in the autograd graph if gradients are enabled."""
        for i, stack in enumerate(self.stacks):
            down_MRI, up_MOR = stack.down_MRI, stack.up_MOR
            dtype = stack.layers[0].weight.dtype
            branches: Iterator[_Merged | _Added]
            if self.merged:
                weight_MOI = torch.baddbmm(self._base[i].to(up_MOR.dtype), up_MOR, down_MRI, alpha=self.scale)
                branches = map(_Merged, weight_MOI.to(dtype).unbind())
            else:
                pairs = zip(down_MRI.to(dtype).unbind(), up_MOR.to(dtype).unbind(), strict=True)
                branches = (_Added(down_RI, up_OR, self.scale) for down_RI, up_OR in pairs)
            for layer, branch in zip(stack.layers, branches, strict=True):
                layer.lora = branch

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
