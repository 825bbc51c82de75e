"""SD1.x checkpoints: from a single `.safetensors` file to the three models, and back.

Sizes are read from tensor shapes. What shapes cannot tell (heads, groups, the native resolution) is SD1.x's unless the
file's metadata has a `lorac.config` key, as the embedded base's does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorac.errors import InputError, Problem
from lorac.sd import names
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.unet import UNet, UNetConfig
from lorac.sd.vae import VAE, VAEConfig

State = dict[str, Tensor]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
METADATA_KEY = "lorac.config"

# A key with one of these beginnings shows that a file is of another model family.
FOREIGN = {
    "conditioner.embedders.": "an SDXL checkpoint",
    "cond_stage_model.model.": "an SD2.x checkpoint",
    "lora_unet_": "a LoRA, not a base",
    "lora_te_": "a LoRA, not a base",
}


@dataclass(frozen=True)
class UNetHeads:
    """What the U-Net's shapes do not tell."""

    heads: int = 8
    groups: int = 32


@dataclass(frozen=True)
class VAEGroups:
    """What the VAE's shapes do not tell."""

    groups: int = 32


@dataclass(frozen=True)
class TextHeads:
    """What the text encoder's shapes do not tell. 0 heads mean one for each 64 channels, as in every CLIP."""

    heads: int = 0


@dataclass(frozen=True)
class BaseConfig:
    """What a checkpoint's shapes do not tell; the defaults are SD1.x's. `resolution` in pixels."""

    unet: UNetHeads = field(default_factory=UNetHeads)
    vae: VAEGroups = field(default_factory=VAEGroups)
    text: TextHeads = field(default_factory=TextHeads)
    resolution: int = 512
    clip_skip: int = 1

    def to_json(self) -> str:
        """The text under `lorac.config` in a file's metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> BaseConfig:
        """The reverse of `to_json`; absent fields keep SD1.x's values, unknown ones raise TypeError."""
        data: dict[str, Any] = json.loads(text)
        sections = {"unet": UNetHeads, "vae": VAEGroups, "text": TextHeads}
        nested = {key: kind(**data.pop(key)) for key, kind in sections.items() if key in data}
        return replace(BaseConfig(**data), **nested)


@dataclass(frozen=True)
class Parts:
    """The tensors of one checkpoint, under the models' own names."""

    unet: State
    vae: State
    text: State


def read(path: Path) -> tuple[State, BaseConfig]:
    """All tensors of a `.safetensors` file, and its configuration. Raises InputError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = (file.metadata() or {}).get(METADATA_KEY)
        return tensors, BaseConfig.from_json(config) if config else BaseConfig()
    except FileNotFoundError:
        raise _error(path, "no such checkpoint", "give the path of a .safetensors file, or builtin:mini") from None
    except (OSError, SafetensorError) as error:
        raise _error(path, f"not a readable .safetensors file ({error})", "download or copy it again") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise _error(path, f"its {METADATA_KEY} metadata is not understood ({error})", "save it again") from None


def split(tensors: State, where: Path | str) -> Parts:
    """Sorts a single file's tensors into the three models and renames them; other keys (EMA, schedules) are ignored.

    `where` names the file in errors. Raises InputError when the file is of another family or lacks a whole model.
    """
    for start, family in FOREIGN.items():
        if any(key.startswith(start) for key in tensors):
            raise _error(where, f"this is {family}", "lorac needs an SD1.x checkpoint as the base")
    parts = Parts(
        unet=_take(tensors, UNET_PREFIX, names.UNET),
        vae={key: _as_linear(key, tensor) for key, tensor in _take(tensors, VAE_PREFIX, names.VAE).items()},
        text=_take(tensors, TEXT_PREFIX, names.TEXT | names.TEXT_BARE),
    )
    parts.text.pop("text_model.embeddings.position_ids", None)
    missing = [
        Problem(str(where), f"the checkpoint has no {name} (keys {prefix}…)", "use a full SD1.x checkpoint")
        for name, prefix, part in (
            ("U-Net", UNET_PREFIX, parts.unet),
            ("VAE", VAE_PREFIX, parts.vae),
            ("text encoder", TEXT_PREFIX, parts.text),
        )
        if not part
    ]
    if missing:
        raise InputError(missing)
    return parts


def check_finite(tensors: State, where: Path | str) -> None:
    """Raises InputError naming every tensor that holds a NaN or an infinity."""
    problems = [
        Problem(str(where), f"tensor {key} holds NaN or infinity", "the file is damaged; use another")
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if problems:
        raise InputError(problems)


def load_unet(
    state: State, heads: int = 8, groups: int = 32, where: Path | str = "U-Net", dtype: torch.dtype = torch.float32
) -> UNet:
    """The U-Net of `Parts.unet`, with sizes from its shapes. Raises InputError for missing or extra tensors."""
    width = _size(state, "conv_in.weight", 0, where)
    context = _size(state, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, where)
    with torch.device("meta"):
        model = UNet(UNetConfig(width=width, context=context, heads=heads, groups=groups))
    _fill(model, state, where, dtype)
    return model


def load_vae(state: State, groups: int = 32, where: Path | str = "VAE", dtype: torch.dtype = torch.float32) -> VAE:
    """The VAE of `Parts.vae`, with sizes from its shapes. Raises InputError for missing or extra tensors."""
    width = _size(state, "encoder.conv_in.weight", 0, where)
    with torch.device("meta"):
        model = VAE(VAEConfig(width=width, groups=groups))
    _fill(model, state, where, dtype)
    return model


def load_text(
    state: State, heads: int = 0, where: Path | str = "text encoder", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """The text encoder of `Parts.text`, with sizes from its shapes. Raises InputError for missing or extra tensors."""
    embedding = "text_model.embeddings.token_embedding.weight"
    width = _size(state, embedding, 1, where)
    config = TextConfig(
        width=width,
        layers=1 + max((int(key.split(".")[3]) for key in state if ".encoder.layers." in key), default=-1),
        heads=heads or width // 64,
        inner=_size(state, "text_model.encoder.layers.0.mlp.fc1.weight", 0, where),
        vocabulary=_size(state, embedding, 0, where),
    )
    model = TextEncoder(config)
    _fill(model, state, where, dtype)
    return model


def save_ldm(
    path: Path, unet: UNet, vae: VAE, text: TextEncoder, config: BaseConfig, dtype: torch.dtype = torch.float16
) -> None:
    """Writes the three models as one `.safetensors` file with SD1.x's single-file names, in `dtype`."""
    tensors: State = {}
    for model, prefix, table in (
        (unet, UNET_PREFIX, names.UNET),
        (vae, VAE_PREFIX, names.VAE),
        (text, TEXT_PREFIX, names.TEXT),
    ):
        theirs = names.inverse(table)
        for key, tensor in model.state_dict().items():
            square = tensor[:, :, None, None] if _is_vae_attention(key) else tensor
            tensors[f"{prefix}{names.rename(key, theirs)}"] = square.to(dtype).contiguous()
    save_file(tensors, path, {"format": "pt", METADATA_KEY: config.to_json()})


def _error(where: Path | str, cause: str, remedy: str) -> InputError:
    return InputError([Problem(str(where), cause, remedy)])


def _take(tensors: State, prefix: str, table: names.Table) -> State:
    """The tensors below `prefix`, renamed. A key that the table lacks keeps its name, and `_fill` reports it."""
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {names.rename(key, table) or key: tensor for key, tensor in own.items()}


def _is_vae_attention(key: str) -> bool:
    return "mid_block.attentions.0.to_" in key and key.endswith(".weight")


def _as_linear(key: str, tensor: Tensor) -> Tensor:
    """The VAE's attention weights are 1×1 convolutions in single files and matrices in the model."""
    return tensor.flatten(1) if _is_vae_attention(key) else tensor


def _size(state: State, key: str, axis: int, where: Path | str) -> int:
    if key not in state or state[key].dim() <= axis:
        raise _error(where, f"tensor {key} is missing or has no axis {axis}", "use a full SD1.x checkpoint")
    return state[key].shape[axis]


def _fill(model: nn.Module, state: State, where: Path | str, dtype: torch.dtype) -> None:
    """Puts `state` into `model` in place of its own parameters, after comparing names and shapes."""
    own = model.state_dict()
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    problems = [
        Problem(str(where), f"{len(keys)} {what} tensors: {_some(keys)}", "is this an SD1.x checkpoint?")
        for what, keys in (
            ("missing", own.keys() - state.keys()),
            ("unexpected", state.keys() - own.keys()),
            ("misshapen", wrong),
        )
        if keys
    ]
    if problems:
        raise InputError(problems)
    model.load_state_dict({key: tensor.to(dtype) for key, tensor in state.items()}, assign=True)


def _some(keys: Collection[str] | Iterable[str], count: int = 3) -> str:
    listed = sorted(keys)
    return ", ".join(listed[:count]) + (", …" if len(listed) > count else "")
