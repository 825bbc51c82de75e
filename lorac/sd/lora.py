"""LoRA (Hu et al. 2021, arXiv:2106.09685) on the modules that kohya's `networks/lora.py` trains in SD1.x.

    y = x (W + s · up · down)ᵀ + b,   down: (rank, in),  up: (out, rank),  s = alpha / rank · strength

`lora_settings` says which modules get one, `lora_stack` keeps the factors, `lora_forms` computes. In the merged form
the layers read `W + s · up · down` from a buffer that `refresh` fills, one `baddbmm` for a whole stack. It costs the
adapted weights once more in memory, and nothing in the layers. Autograd does not see the factors; `lorac.train.fused`
trains them. It is for plain LoRA; DoRA, convolutions and dropouts need the forms that autograd sees.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lorac.errors import InputError, Problem
from lorac.sd.layers import Layer
from lorac.sd.lora_forms import Dropouts
from lorac.sd.lora_names import PARTS, Part
from lorac.sd.lora_settings import Adapter, NetworkSettings, adapters_of
from lorac.sd.lora_stack import Stack

__all__ = ["Group", "LoRANetwork", "NetworkSettings"]

MERGED_LIMIT = 64 * 2**20
"""Largest total size in bytes of the adapted base weights for which the merged form is used."""


@dataclass(frozen=True)
class Group:
    """Parameters whose learning rate is that of their part times `factor`."""

    parameters: list[nn.Parameter]
    factor: float


class LoRANetwork:
    """A LoRA attached to a U-Net and, if wanted, to a text encoder. The base gets no gradients.

    Factors are float32 on the device of the layer; their initial values depend on (seed, module) alone. Call `refresh`
    when the factors have changed.
    """

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module,
        settings: NetworkSettings,
        targets: Collection[str] = PARTS,
        seed: int = 0,
        merged: bool | None = None,
    ) -> None:
        """`merged` None chooses the form by `MERGED_LIMIT`; a network that is more than plain LoRA is never merged."""
        self._build(unet, text_encoder, settings, settings.adapters(targets), seed, merged)

    @classmethod
    def of_state(
        cls, unet: nn.Module, text_encoder: nn.Module, tensors: Mapping[str, Tensor], merged: bool | None = None
    ) -> LoRANetwork:
        """The LoRA of a file or a training state by kohya's names: ranks, alphas and DoRA are as the tensors have them.

        Raises InputError if it is a LoRA of another kind or for another base.
        """
        adapters = adapters_of(tensors)
        network = cls.__new__(cls)
        network._build(unet, text_encoder, NetworkSettings(), adapters, None, merged)
        network.load_state(network._alphas() | dict(tensors))
        return network

    def _build(
        self,
        unet: nn.Module,
        text_encoder: nn.Module,
        settings: NetworkSettings,
        adapters: list[Adapter],
        seed: int | None,
        merged: bool | None,
    ) -> None:
        self.settings, self.strength = settings, 1.0
        self._fused: frozenset[Part] = frozenset()
        models: dict[Part, nn.Module] = {"unet": unet, "text_encoder": text_encoder}
        for model in models.values():
            model.requires_grad_(False)
        groups: dict[tuple[object, ...], list[tuple[Adapter, Layer]]] = {}
        for adapter in adapters:
            target = adapter.target
            layer: Layer = models[target.part].get_submodule(target.path)  # type: ignore[assignment]
            like = (target.rows, layer.weight.shape, adapter.rank, adapter.alpha, adapter.factor, adapter.dora)
            groups.setdefault(like, []).append((adapter, layer))
        size = sum(layer.weight.nbytes for pairs in groups.values() for _, layer in pairs)
        self.plain = not settings.dropping and not any(adapter.target.extra or adapter.dora for adapter in adapters)
        self.merged = self.plain and (size <= MERGED_LIMIT if merged is None else merged)
        self._dropouts = Dropouts(settings.dropout, settings.rank_dropout, settings.module_dropout)
        self.stacks = [Stack(pairs, seed, self.merged, self._dropouts) for pairs in groups.values()]
        self.refresh()

    @property
    def alpha(self) -> float:
        """The largest alpha of all modules, for messages."""
        return max((stack.alpha for stack in self.stacks), default=self.settings.alpha)

    @property
    def dropping(self) -> bool:
        """Whether training leaves out parts at random; then each step begins with `start_step`."""
        return self.settings.dropping

    def start_step(self, seed: int | None) -> None:
        """Draw what is left out from now on from `seed`; None for nothing, as it is before the first call."""
        self._dropouts.start(seed)

    def parameters(self, part: Part) -> list[nn.Parameter]:
        """The stacked factors of one part, down, up and DoRA's magnitudes in turn."""
        return [parameter for stack in self.stacks if stack.part == part for parameter in stack.parameters()]

    def groups(self, part: Part) -> list[Group]:
        """The same, by learning rate: kohya's factors of blocks, times LoRA+'s ratio for up factors."""
        groups: dict[float, list[nn.Parameter]] = {}
        for stack in self.stacks:
            if stack.part == part:
                for parameter in stack.parameters():
                    ratio = self.settings.up_ratio(part) if parameter is stack.up_MOR else 1.0
                    groups.setdefault(stack.factor * ratio, []).append(parameter)
        return [Group(parameters, factor) for factor, parameters in groups.items()]

    def refresh(self) -> None:
        """Attach the current factors to the layers, but for parts that are `fused`."""
        for stack in self.stacks:
            stack.merge()
            if self.merged:
                stack.attach_merged()
            elif stack.part not in self._fused:
                stack.attach()

    def fuse(self, parts: Collection[Part]) -> None:
        """From now on the layers of these parts read the factors themselves. Attached, they would be held once more,
        in the base's dtype."""
        self._fused = frozenset(parts)
        self.detach()
        self.refresh()

    def set_strength(self, strength: float) -> None:
        """Multiply the LoRA by `strength` from now on, as `<lora:NAME:strength>` does; 0 is the bare base."""
        self.strength = strength
        for stack in self.stacks:
            stack.strength = strength
        self.refresh()

    def scale_weight_norms(self, limit: float, part: Part | None = None) -> None:
        """Scale down the changes of weights that are longer than `limit`, of all parts or of one.

        For the end of a step: what fused layers read is computed anew, the plain forms wait for the next `refresh`.
        """
        for stack in self.stacks:
            if part in (None, stack.part):
                stack.limit_norms(limit)
                stack.merge()

    def detach(self) -> None:
        """Give the model back as it was; `refresh` attaches the LoRA again."""
        for stack in self.stacks:
            for layer in stack.layers:
                layer.lora = None

    def adapters(self) -> list[Adapter]:
        """What each module has."""
        return [
            Adapter(target, stack.rank, stack.alpha, stack.factor, stack.axis)
            for stack in self.stacks
            for target in stack.targets
        ]

    def state(self) -> dict[str, Tensor]:
        """The LoRA under kohya's names: `.lora_down.weight` (R, I), `.lora_up.weight` (O, R), `.alpha` ().

        Convolutions have (R, I, …) and (O, R, 1, 1). DoRA adds `.dora_scale`, (1, I) or (1, I, 1, 1). The factors are
        views, float32. rsLoRA's alpha is the one with which alpha / rank is its scale.
        """
        factors = {factor: factor.detach() for part in PARTS for factor in self.parameters(part)}
        return self.named(factors) | self._alphas()

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
        views: dict[str, Tensor] = {}
        for stack in self.stacks:
            views |= stack.named([tensors[parameter] for parameter in stack.parameters()])
        return views

    def _alphas(self) -> dict[str, Tensor]:
        return {name: alpha for stack in self.stacks for name, alpha in stack.alphas().items()}
