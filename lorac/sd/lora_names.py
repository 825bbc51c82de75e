"""kohya's LoRA modules of SD1.x, from tables: libraries rename their modules, a web UI does not.

264 modules get a LoRA always, 86 more with LoCon: the convolutions and time projections of the U-Net.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Part = Literal["text_encoder", "unet"]

PARTS: tuple[Part, ...] = ("text_encoder", "unet")
"""kohya's order, of modules as of parameter groups."""

PARAMETERS = (".lora_down.weight", ".lora_up.weight", ".dora_scale")
ALPHA = ".alpha"
"""What follows a module's name in a file."""

BLOCKS, MIDDLE = 25, 12
"""kohya's blocks of the U-Net: 0 to 11 on the way down (IN00 to IN11), 12, and 13 to 24 on the way up."""

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
TRANSFORMER_MODULES = (
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
    "unet": tuple(f"{transformer}.{module}" for transformer in _TRANSFORMERS for module in TRANSFORMER_MODULES),
}
_RESNETS = (
    *(f"down_blocks.{block}.resnets.{i}" for block in (0, 1, 2, 3) for i in (0, 1)),
    *(f"mid_block.resnets.{i}" for i in (0, 1)),
    *(f"up_blocks.{block}.resnets.{i}" for block in (0, 1, 2, 3) for i in (0, 1, 2)),
)
_SHORTCUTS = ("down_blocks.1.resnets.0", "down_blocks.2.resnets.0", *(r for r in _RESNETS if r.startswith("up_")))
"""The resnets whose number of channels changes."""
_CONVOLUTIONS = (
    *(f"{resnet}.{module}" for resnet in _RESNETS for module in ("conv1", "time_emb_proj", "conv2")),
    *(f"{resnet}.conv_shortcut" for resnet in _SHORTCUTS),
    *(f"down_blocks.{block}.downsamplers.0.conv" for block in (0, 1, 2)),
    *(f"up_blocks.{block}.upsamplers.0.conv" for block in (0, 1, 2)),
)
_PREFIX: dict[Part, str] = {"text_encoder": "lora_te_", "unet": "lora_unet_"}


@dataclass(frozen=True)
class Target:
    """A module that gets a LoRA. `name` is kohya's, `path` the module's in its model, `index` counts all 350.

    `extra`: one of the 86 that only LoCon trains.
    """

    name: str
    path: str
    part: Part
    index: int
    extra: bool = False

    @property
    def rows(self) -> str:
        """A name for the number of rows in the module's input: modules with the same name always see equally many.

        The text encoder's see its tokens. The U-Net's see the pixels at its level (0 is full size, 3 an eighth), or
        the caption's states in `attn2.to_k` and `attn2.to_v`.
        """
        if self.part == "text_encoder":
            return "text"
        if self.extra:
            return self.path.rpartition(".")[2]
        kind = "caption" if re.search(r"attn2\.to_[kv]$", self.path) else "level"
        return f"{kind} {_level(self.path)}"

    @property
    def spatial(self) -> bool:
        """Whether it is a 3×3 convolution, which has a rank and an alpha of its own."""
        return self.extra and re.search(r"\.conv[12]?$", self.path) is not None

    @cached_property
    def block(self) -> int | None:
        """kohya's block (`get_block_index` of networks/lora.py); None in the text encoder."""
        if self.part == "text_encoder":
            return None
        side, index, kind, number = self.path.split(".")[:4]
        if side == "mid_block":
            return MIDDLE
        within = 3 * int(index) + (2 if kind in ("downsamplers", "upsamplers") else int(number))
        return within + (1 if side == "down_blocks" else MIDDLE + 1)


def _level(path: str) -> int:
    block, index = path.split(".")[:2]
    return {"down_blocks": int(index), "up_blocks": 3 - int(index)}[block] if block != "mid_block" else 3


def _table() -> tuple[Target, ...]:
    plain = [(part, path, False) for part in PARTS for path in _PATHS[part]]
    extra: list[tuple[Part, str, bool]] = [("unet", path, True) for path in _CONVOLUTIONS]
    return tuple(
        Target(_PREFIX[part] + path.replace(".", "_"), path, part, index, locon)
        for index, (part, path, locon) in enumerate([*plain, *extra])
    )


_TABLE = _table()
BY_NAME = {target.name: target for target in _TABLE}


def modules(targets: Collection[str], *, locon: bool = False) -> list[Target]:
    """kohya's modules of the chosen parts: 72 of the text encoder, 192 of the U-Net, and 86 for LoCon."""
    return [target for target in _TABLE if target.part in targets and (locon or not target.extra)]
