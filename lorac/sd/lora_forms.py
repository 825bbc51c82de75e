"""How a layer computes its output with a LoRA on it, and what training leaves out at random.

    merged      `x (W + s · up · down)ᵀ` from a weight that is computed beforehand, outside of autograd
    added       `x Wᵀ + s · (x downᵀ) upᵀ`, the textbook form, differentiable as it stands, with the three dropouts
    decomposed  DoRA (Liu et al. 2024, arXiv:2402.09353): the rows or columns of `W + s · up · down` at learnt lengths

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lorac.rng import seed64
from lorac.sd.layers import Layer
from lorac.sd.lora_settings import Axis


class Merged:
    """The merged form of one linear layer."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI = weight_OI

    def __call__(self, x: Tensor, layer: Layer) -> Tensor:
        return F.linear(x, self.weight_OI, layer.bias)


class Dropouts:
    """The three dropouts of networks/lora.py's `LoRAModule.forward`, drawn for each module from a step's seed alone.

    dropout: of single numbers between the two factors; rank: of whole ranks, for each sample; module: of the LoRA of a
    whole module. Nothing is dropped before `start` or after `start(None)`. Masks are drawn on the CPU, so that they are
    the same on every machine.
    """

    def __init__(self, dropout: float, rank: float, module: float) -> None:
        self.dropout, self.rank, self.module = dropout, rank, module
        self._seed: int | None = None
        self._generators: dict[int, torch.Generator] = {}

    def start(self, seed: int | None) -> None:
        self._seed = seed if self.dropout or self.rank or self.module else None
        self._generators.clear()

    def skips(self, module: int) -> bool:
        """Whether this pass leaves out the LoRA of the module with this number."""
        return bool(self._seed is not None and self.module and self._draw(module, (1,)) < self.module)

    def thinned(self, middle: Tensor, module: int, channels: int) -> Tensor:
        """What the up factor gets: `middle` with parts of it zero, and the rest larger, so that its mean is kept."""
        if self._seed is None:
            return middle
        if self.dropout:
            kept = self._draw(module, middle.shape) >= self.dropout
            middle = middle * (kept / (1 - self.dropout)).to(middle)
        if self.rank:
            batch, ranks = middle.shape[0], middle.shape[channels]
            shape = [1] * middle.dim()
            shape[0], shape[channels] = batch, ranks
            kept = self._draw(module, (batch, ranks)) > self.rank
            middle = middle * (kept / (1 - self.rank)).view(shape).to(middle)
        return middle

    def _draw(self, module: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers in [0, 1); a module that runs twice in a step goes on where it stopped."""
        assert self._seed is not None
        if module not in self._generators:
            seed = seed64(self._seed, "lora_dropout", module)
            self._generators[module] = torch.Generator().manual_seed(seed)
        return torch.rand(shape, generator=self._generators[module])


class Factors:
    """The factors of one module, in the base's dtype. down: (rank, *the weight's other dimensions)."""

    def __init__(self, down: Tensor, up_OR: Tensor, scale: float, module: int, dropouts: Dropouts) -> None:
        self.down, self.up_OR, self.scale = down, up_OR, scale
        self.module, self.dropouts = module, dropouts

    def skipped(self) -> bool:
        return self.dropouts.skips(self.module)

    def change(self, x: Tensor, layer: Layer) -> Tensor:
        """What the LoRA adds to the layer's output, before it is scaled."""
        middle = layer.compute(x, self.down, None)
        return layer.project(self.dropouts.thinned(middle, self.module, layer.channels), self.up_OR)


class Added:
    """The added form of one layer."""

    def __init__(self, factors: Factors, strength: float) -> None:
        self._factors, self._scale = factors, factors.scale * strength

    def __call__(self, x: Tensor, layer: Layer) -> Tensor:
        if self._factors.skipped():
            return layer.compute(x, layer.weight, layer.bias)
        change = self._factors.change(x, layer)
        return torch.add(layer.compute(x, layer.weight, layer.bias), change, alpha=self._scale)


class Decomposed:
    """DoRA on one layer. `ratio`: the magnitudes over the norms, one number for each input, or for each output.

    At a strength other than 1 its change of the weight is scaled, as ComfyUI, A1111 and LyCORIS do.
    """

    def __init__(self, factors: Factors, ratio: Tensor, axis: Axis, strength: float) -> None:
        self._factors, self._ratio, self._axis, self._strength = factors, ratio, axis, strength

    def __call__(self, x: Tensor, layer: Layer) -> Tensor:
        if self._factors.skipped():
            return layer.compute(x, layer.weight, layer.bias)
        changed = self._changed(x, layer)
        if self._strength == 1.0:
            return changed
        return torch.lerp(layer.compute(x, layer.weight, layer.bias), changed, self._strength)

    def _changed(self, x: Tensor, layer: Layer) -> Tensor:
        factors = self._factors
        along = (-1,) + (1,) * (-1 - layer.channels if layer.channels < 0 else x.dim() - 1 - layer.channels)
        ratio = self._ratio.view(along)
        if self._axis == "in":
            x = x * ratio
            output = layer.compute(x, layer.weight, layer.bias)
            return torch.add(output, factors.change(x, layer), alpha=factors.scale)
        output = layer.compute(x, layer.weight, None)
        output = torch.add(output, factors.change(x, layer), alpha=factors.scale) * ratio
        return output if layer.bias is None else output + layer.bias.view(along)
