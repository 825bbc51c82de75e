"""Which modules get a LoRA, of which rank, alpha and learning rate: from settings, or from a LoRA's file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from lorac.errors import InputError, Problem
from lorac.sd.lora_names import ALPHA, BY_NAME, MIDDLE, PARAMETERS, Part, Target, modules

if TYPE_CHECKING:
    from torch import Tensor

Axis = Literal["in", "out"]
"""What DoRA's magnitudes belong to: the inputs of a module, or its outputs."""

TRAINED_AXIS: Axis = "in"
"""A1111, Forge, InvokeAI and every ComfyUI divide by the norms of the columns, which belong to inputs, whatever the
shape of `dora_scale`; only LyCORIS divides by those of rows. (ComfyUI takes (out, 1) for rows, but divides by the norms
of the base's instead of the changed weight's.) So trained magnitudes have the shape (1, in), as the paper's notation
has it, and not PEFT's (out,). diffusers drops `dora_scale` when it loads kohya's names, in any shape."""


@dataclass(frozen=True)
class Adapter:
    """The LoRA of one module: it is scaled by `alpha` / `rank`, and learns at `factor` times its part's rate."""

    target: Target
    rank: int
    alpha: float
    factor: float = 1.0
    dora: Axis | None = None


@dataclass(frozen=True)
class NetworkSettings:
    """[network] of a recipe and LoRA+'s keys of [train]; the words and their meanings are those of networks/lora.py.

    Ranks and factors per block: see `lora_names.BLOCKS`; 0 leaves a block out.
    """

    dim: int = 4
    alpha: float = 1.0
    rslora: bool = False
    dora: bool = False
    conv_dim: int | None = None
    conv_alpha: float = 1.0
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    block_dims: tuple[int, ...] | None = None
    block_alphas: tuple[float, ...] | None = None
    conv_block_dims: tuple[int, ...] | None = None
    conv_block_alphas: tuple[float, ...] | None = None
    down_lr_weight: tuple[float, ...] | None = None
    mid_lr_weight: float | None = None
    up_lr_weight: tuple[float, ...] | None = None
    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None

    @classmethod
    def of(cls, network: Mapping[str, Any], train: Mapping[str, Any]) -> NetworkSettings:
        """From the sections of a train node's params, which hold more than this."""
        given = {**network, **train}
        values = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        tupled: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**tupled)

    @property
    def locon(self) -> bool:
        return self.conv_dim is not None or self.conv_block_dims is not None

    @property
    def dropping(self) -> bool:
        return bool(self.dropout or self.rank_dropout or self.module_dropout)

    def up_ratio(self, part: Part) -> float:
        """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the up factors' learning rate over that of the down factors."""
        own = self.loraplus_unet_lr_ratio if part == "unet" else self.loraplus_text_encoder_lr_ratio
        return own or self.loraplus_lr_ratio or 1.0

    def adapters(self, targets: Collection[str]) -> list[Adapter]:
        """The modules of the chosen parts that get a LoRA.

        rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) works at alpha / √rank. As programs that load a LoRA work at
        alpha / rank, its alpha is alpha · √rank from here on.
        """
        found = []
        for target in modules(targets, locon=self.locon):
            rank, alpha = self._size(target)
            factor = self._factor(target)
            if rank and factor:
                alpha = alpha * math.sqrt(rank) if self.rslora else alpha
                found.append(Adapter(target, rank, alpha, factor, TRAINED_AXIS if self.dora else None))
        return found

    def _size(self, target: Target) -> tuple[int, float]:
        """Rank and alpha of a module."""
        block, dims, alphas = target.block, self.block_dims, self.block_alphas
        rank, alpha = self.dim, self.alpha
        if target.spatial:
            dims, alphas = self.conv_block_dims, self.conv_block_alphas
            rank, alpha = self.conv_dim or 0, self.conv_alpha
        if block is None:
            return rank, alpha
        return rank if dims is None else dims[block], alpha if alphas is None else alphas[block]

    def _factor(self, target: Target) -> float:
        """What the learning rate of a module's block is multiplied by."""
        block = target.block
        if block is None:
            return 1.0
        if block == MIDDLE:
            return 1.0 if self.mid_lr_weight is None else self.mid_lr_weight
        weights, within = (self.down_lr_weight, block) if block < MIDDLE else (self.up_lr_weight, block - MIDDLE - 1)
        return 1.0 if weights is None else weights[within]


def adapters_of(tensors: Mapping[str, Tensor], where: str = "LoRA") -> list[Adapter]:
    """The modules of a LoRA's file by kohya's names; other tensors than `lora_…` are passed over.

    Without an alpha, kohya takes the rank. Raises InputError for a LoRA of another kind.
    """
    names = [name for name in tensors if name.startswith("lora_")]
    unknown = sorted(name for name in names if not _known(name))
    downs = {name.removesuffix(PARAMETERS[0]) for name in names if name.endswith(PARAMETERS[0])}
    halves = sorted(name for name in {name.partition(".")[0] for name in names} if not _whole(tensors, name))
    if unknown or halves or not downs:
        found = (unknown or halves or sorted(tensors) or ["nothing"])[0]
        cause = f'this is no LoRA of SD1.x with kohya\'s names: it has "{found}"'
        remedy = "give a LoRA that lorac or sd-scripts (networks.lora) wrote; PEFT's and diffusers' names are not read"
        raise InputError([Problem(where, cause, remedy)])
    return [_adapter(tensors, target) for name, target in BY_NAME.items() if name in downs]


def _known(name: str) -> bool:
    module, _, rest = name.partition(".")
    return module in BY_NAME and f".{rest}" in (*PARAMETERS, ALPHA)


def _whole(tensors: Mapping[str, Tensor], module: str) -> bool:
    return all(f"{module}{suffix}" in tensors for suffix in PARAMETERS[:2])


def _adapter(tensors: Mapping[str, Tensor], target: Target) -> Adapter:
    rank = len(tensors[f"{target.name}{PARAMETERS[0]}"])
    alpha = tensors.get(f"{target.name}{ALPHA}")
    scales = tensors.get(f"{target.name}{PARAMETERS[2]}")
    # The shape tells: (1, in, …) belongs to inputs, (out, 1, …) and PEFT's (out,) to outputs.
    axis: Axis | None = None if scales is None else "in" if scales.dim() > 1 and len(scales) == 1 else "out"
    return Adapter(target, rank, float(rank if alpha is None else alpha), dora=axis)
