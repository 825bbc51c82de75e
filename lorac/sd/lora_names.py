"""kohya's 264 LoRA modules of SD1.x, from tables: libraries rename their modules, a web UI does not."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Part = Literal["text_encoder", "unet"]

PARTS: tuple[Part, ...] = ("text_encoder", "unet")
"""kohya's order, of modules as of parameter groups."""

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

    @property
    def rows(self) -> str:
        """A name for the number of rows in the module's input: modules with the same name always see equally many.

        The text encoder's see its tokens. The U-Net's see the pixels at its level (0 is full size, 3 an eighth), or
        the caption's states in `attn2.to_k` and `attn2.to_v`.
        """
        if self.part == "text_encoder":
            return "text"
        kind = "caption" if re.search(r"attn2\.to_[kv]$", self.path) else "level"
        return f"{kind} {_level(self.path)}"


def _level(path: str) -> int:
    block, index = path.split(".")[:2]
    return {"down_blocks": int(index), "up_blocks": 3 - int(index)}[block] if block != "mid_block" else 3


_TABLE = tuple(
    Target(_PREFIX[part] + path.replace(".", "_"), path, part, index)
    for index, (part, path) in enumerate((part, path) for part in PARTS for path in _PATHS[part])
)


def modules(targets: Collection[str]) -> list[Target]:
    """kohya's modules of the chosen parts: 72 of the text encoder first, then 192 of the U-Net."""
    return [target for target in _TABLE if target.part in targets]
