"""The LoRA of like modules, stacked: a step handles some forty tensors instead of 528.

Shape suffixes: M modules of a stack, O outputs, I inputs (of a 3×3 convolution 9 for each channel), R rank, N channels
that a magnitude belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorac.rng import seed64
from lorac.sd.layers import Layer
from lorac.sd.lora_forms import Added, Decomposed, Dropouts, Factors, Merged
from lorac.sd.lora_names import ALPHA, PARAMETERS, Target
from lorac.sd.lora_settings import Adapter


class Stack:
    """Modules of one part with equal shapes, ranks, alphas and factors, and equally many rows of input.

    down_MRI: kaiming-uniform with a = √5 as in kohya and PEFT, each module from a seed of its own (zeros without a
    seed); up_MOR: zeros. magnitude_MN: DoRA's, at first the norms of the base, so that nothing is changed.
    merged_MOI: the weights of the merged form, of the base's dtype; empty in the others. copies: of factors, in the
    base's dtype, for layers that read those.

    A member of a gang has its factors beside those of others (`join`); where its rank is smaller than another's, the
    further rows of `down_MRI` and columns of `up_MOR` are zeros and stay zeros. `named` shows what the LoRA has.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Adapter, Layer]],
        seed: int | None,
        merged: bool,
        dropouts: Dropouts,
    ) -> None:
        self.targets = tuple(adapter.target for adapter, _ in pairs)
        self.layers = tuple(layer for _, layer in pairs)
        first = pairs[0][0]
        self.part, self.rank, self.alpha, self.factor = first.target.part, first.rank, first.alpha, first.factor
        self.axis, self.strength, self._dropouts = first.dora, 1.0, dropouts
        device = self.layers[0].weight.device
        outputs, inputs = self.layers[0].weight.flatten(1).shape
        down_MRI = torch.stack([_draw_down(target, self.rank, inputs, seed) for target in self.targets])
        self.down_MRI = nn.Parameter(down_MRI.to(device))
        self.up_MOR = nn.Parameter(torch.zeros(len(pairs), outputs, self.rank, device=device))
        self.magnitude_MN = nn.Parameter(self._norms()) if self.axis else None
        weights = [layer.weight.detach().flatten(1) for layer in self.layers]
        self._base_MOI = torch.stack(weights) if merged else torch.empty(0)
        self.merged_MOI = self._base_MOI.clone()
        self.copies: dict[Tensor, Tensor] = {}

    @property
    def scale(self) -> float:
        return self.alpha / self.rank * self.strength

    def parameters(self) -> list[nn.Parameter]:
        magnitudes = [] if self.magnitude_MN is None else [self.magnitude_MN]
        return [self.down_MRI, self.up_MOR, *magnitudes]

    @property
    def merged(self) -> bool:
        return len(self.merged_MOI) > 0

    @torch.no_grad()
    def join(self, down_MRI: Tensor, up_MOR: Tensor, merged_MOI: Tensor, like: Stack) -> None:
        """Move into these tensors, zeros of at least this rank. `like`: a stack on the same layers, whose base is kept
        instead of this one's."""
        held = self.down_MRI.shape[1]
        down_MRI[:, :held] = self.down_MRI
        up_MOR[:, :, :held] = self.up_MOR
        self.down_MRI.data, self.up_MOR.data, self.copies = down_MRI, up_MOR, {}
        if self.merged:
            self.merged_MOI, self._base_MOI = merged_MOI.copy_(self.merged_MOI), like._base_MOI
            self.attach_merged()

    @torch.no_grad()
    def cast(self, down_MRI: Tensor, up_MOR: Tensor) -> None:
        """From now on, each `merge` copies the factors into these tensors, of the base's dtype."""
        self.copies = {self.down_MRI: down_MRI, self.up_MOR: up_MOR}
        self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Compute from the current factors what layers read: the merged weights, or the factors in another dtype."""
        for factor, copy in self.copies.items():
            copy.copy_(factor)
        if not self.merged:
            return
        if self.merged_MOI.dtype == torch.float32:
            torch.baddbmm(self._base_MOI, self.up_MOR, self.down_MRI, alpha=self.scale, out=self.merged_MOI)
        else:
            self.merged_MOI.copy_(torch.baddbmm(self._base_MOI.float(), self.up_MOR, self.down_MRI, alpha=self.scale))

    def attach_merged(self) -> None:
        """Let the layers read the merged weights, now and after each `merge`."""
        for layer, weight_OI in zip(self.layers, self.merged_MOI, strict=True):
            layer.lora = Merged(weight_OI)

    def attach(self) -> None:
        """Attach the added or decomposed form with the current factors, in the autograd graph if there is one."""
        dtype = self.layers[0].weight.dtype
        ratio_MN = None if self.magnitude_MN is None else (self.magnitude_MN / self._norms()).to(dtype)
        downs = self.down_MRI[:, : self.rank].to(dtype).unbind()
        ups = self.up_MOR[:, :, : self.rank].to(dtype).unbind()
        for i, (target, layer) in enumerate(zip(self.targets, self.layers, strict=True)):
            down = downs[i].view(self.rank, *layer.weight.shape[1:])
            factors = Factors(down, ups[i], self.alpha / self.rank, target.index, self._dropouts)
            if ratio_MN is None or self.axis is None:
                layer.lora = Added(factors, self.strength)
            else:
                layer.lora = Decomposed(factors, ratio_MN[i], self.axis, self.strength)

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """(M, N): lengths of the changed columns or rows; constants for autograd, as the paper has it in 4.3."""
        norms = []
        for i, layer in enumerate(self.layers):
            weight = layer.weight.float()
            change = torch.mm(self.up_MOR[i], self.down_MRI[i]).mul_(self.alpha / self.rank)
            changed = weight + change.view(weight.shape)
            across = tuple(d for d in range(weight.dim()) if d != (1 if self.axis == "in" else 0))
            # A column of zeros has magnitude 0, and stays one.
            norms.append(torch.linalg.vector_norm(changed, dim=across).clamp(min=torch.finfo(torch.float32).tiny))
        return torch.stack(norms)

    @torch.no_grad()
    def limit_norms(self, limit: float) -> None:
        """kohya's max norm (`apply_max_norm_regularization`): both factors of a long change shrink alike.

        ‖up · down‖² is the sum of the elements of (upᵀ up) ⊙ (down downᵀ), which is smaller than the product.
        """
        gram_MRR = torch.bmm(self.up_MOR.mT, self.up_MOR) * torch.bmm(self.down_MRI, self.down_MRI.mT)
        norm_M = gram_MRR.sum((1, 2)).clamp(min=0).sqrt() * (self.alpha / self.rank)
        norm_M = norm_M.clamp(min=limit / 2)
        factor_M11 = (norm_M.clamp(max=limit) / norm_M).sqrt()[:, None, None]
        self.up_MOR.mul_(factor_M11)
        self.down_MRI.mul_(factor_M11)

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """`values`, each like one of `parameters()`, as views by kohya's names, of kohya's shapes."""
        views = {}
        for i, (target, layer) in enumerate(zip(self.targets, self.layers, strict=True)):
            ones = (1,) * (layer.weight.dim() - 2)
            for suffix, value in zip(PARAMETERS, values, strict=False):
                own = self._own(suffix, value[i])
                views[f"{target.name}{suffix}"] = own.view(self._shape(suffix, layer.weight, ones))
        return views

    def alphas(self) -> dict[str, Tensor]:
        return {f"{target.name}{ALPHA}": torch.tensor(self.alpha) for target in self.targets}

    def _own(self, suffix: str, value: Tensor) -> Tensor:
        """One module's factor without the zeros that fill it up."""
        if suffix == PARAMETERS[0]:
            return value[: self.rank]
        return value[:, : self.rank] if suffix == PARAMETERS[1] else value

    def _shape(self, suffix: str, weight: Tensor, ones: tuple[int, ...]) -> tuple[int, ...]:
        if suffix == PARAMETERS[0]:
            return (self.rank, *weight.shape[1:])
        if suffix == PARAMETERS[1]:
            return (len(weight), self.rank, *ones)
        return (1, weight.shape[1], *ones) if self.axis == "in" else (len(weight), 1, *ones)


def _draw_down(target: Target, rank: int, inputs: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.zeros(rank, inputs)
    generator = torch.Generator().manual_seed(seed64(seed, "lora_down", target.index))
    # kaiming_uniform(a=√5) over `inputs` is uniform in ±√(6 / ((1 + 5) · inputs)).
    return torch.empty(rank, inputs).uniform_(-1.0, 1.0, generator=generator).div_(math.sqrt(inputs))
