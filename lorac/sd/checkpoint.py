"""The three models of SD1.x from their tensors, and back to a single file.

Sizes are read from tensor shapes; what shapes cannot tell comes from `config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from lorac.errors import InputError, Problem
from lorac.sd import names
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.config import METADATA_KEY, BaseConfig
from lorac.sd.families import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from lorac.sd.formats import State
from lorac.sd.parts import Parts, is_vae_attention
from lorac.sd.unet import UNet, UNetConfig
from lorac.sd.vae import VAE, VAEConfig

_IS_IT = "is this an SD1.x checkpoint?"
_TEXT_LAYER = re.compile(r"\.encoder\.layers\.(\d{1,3})\.")


def check(parts: Parts, config: BaseConfig, where: str, vae_where: str) -> None:
    """Raises InputError for all that keeps the tensors from being the three models, and for NaN or infinity in them.

    `where` and `vae_where` name the files of the base and of the VAE.
    """
    problems: list[Problem] = []
    for state, place, build in (
        (parts.unet, where, partial(_empty_unet, heads=config.unet.heads, groups=config.unet.groups)),
        (parts.vae, vae_where, partial(_empty_vae, groups=config.vae.groups)),
        (parts.text, where, partial(_empty_text, heads=config.text.heads)),
    ):
        try:
            problems += _mismatches(build(state, where=place), state, place)
        except InputError as error:
            problems += error.problems
        except (ValueError, ZeroDivisionError) as error:  # groups or heads that do not divide the channels
            problems.append(Problem(place, f"the sizes of a model do not fit together ({error})", _IS_IT))
        problems += not_finite(state, place)
    if problems:
        raise InputError(problems)


def not_finite(tensors: State, where: Path | str) -> list[Problem]:
    """Every tensor that holds a NaN or an infinity."""
    return [
        Problem(str(where), f"tensor {key} holds NaN or infinity", "the file is damaged; use another")
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def load_unet(
    state: State, heads: int = 8, groups: int = 32, where: Path | str = "U-Net", dtype: torch.dtype = torch.float32
) -> UNet:
    """The U-Net of `Parts.unet`, with sizes from its shapes. Raises InputError for missing or extra tensors."""
    model = _empty_unet(state, heads, groups, where)
    _fill(model, state, where, dtype)
    return model


def load_vae(state: State, groups: int = 32, where: Path | str = "VAE", dtype: torch.dtype = torch.float32) -> VAE:
    """The VAE of `Parts.vae`, with sizes from its shapes. Raises InputError for missing or extra tensors."""
    model = _empty_vae(state, groups, where)
    _fill(model, state, where, dtype)
    return model


def load_text(
    state: State, heads: int = 0, where: Path | str = "text encoder", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """The text encoder of `Parts.text`, with sizes from its shapes. Raises InputError for missing or extra tensors."""
    model = _empty_text(state, heads, where)
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
            square = tensor[:, :, None, None] if is_vae_attention(key) else tensor
            tensors[f"{prefix}{names.rename(key, theirs)}"] = square.to(dtype).contiguous()
    save_file(tensors, path, {"format": "pt", METADATA_KEY: config.to_json()})


def _size(state: State, key: str, axis: int, where: Path | str) -> int:
    if key not in state or state[key].dim() <= axis:
        raise InputError.of(where, f"tensor {key} is missing or has no axis {axis}", "use a full SD1.x checkpoint")
    return state[key].shape[axis]


def _empty_unet(state: State, heads: int, groups: int, where: Path | str) -> UNet:
    """A U-Net without memory, of the sizes that the shapes tell."""
    width = _size(state, "conv_in.weight", 0, where)
    context = _size(state, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, where)
    with torch.device("meta"):
        return UNet(UNetConfig(width=width, context=context, heads=heads, groups=groups))


def _empty_vae(state: State, groups: int, where: Path | str) -> VAE:
    width = _size(state, "encoder.conv_in.weight", 0, where)
    with torch.device("meta"):
        return VAE(VAEConfig(width=width, groups=groups))


def _empty_text(state: State, heads: int, where: Path | str) -> TextEncoder:
    embedding = "text_model.embeddings.token_embedding.weight"
    width = _size(state, embedding, 1, where)
    config = TextConfig(
        width=width,
        layers=1 + max((int(m[1]) for key in state if (m := _TEXT_LAYER.search(key))), default=-1),
        heads=heads or width // 64,
        inner=_size(state, "text_model.encoder.layers.0.mlp.fc1.weight", 0, where),
        vocabulary=_size(state, embedding, 0, where),
    )
    with torch.device("meta"):
        return TextEncoder(config)


def _mismatches(model: nn.Module, state: State, where: Path | str) -> list[Problem]:
    """What keeps `state` from being the model's parameters: names and shapes."""
    own = model.state_dict()
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    return [
        Problem(str(where), f"{len(keys)} {what} tensors: {_some(keys)}", _IS_IT)
        for what, keys in (
            ("missing", own.keys() - state.keys()),
            ("unexpected", state.keys() - own.keys()),
            ("misshapen", wrong),
        )
        if keys
    ]


def _fill(model: nn.Module, state: State, where: Path | str, dtype: torch.dtype) -> None:
    """Puts `state` into `model` in place of its own parameters, after comparing names and shapes."""
    problems = _mismatches(model, state, where)
    if problems:
        raise InputError(problems)
    model.load_state_dict({key: tensor.to(dtype) for key, tensor in state.items()}, assign=True)


def _some(keys: Iterable[str], count: int = 3) -> str:
    listed = sorted(keys)
    return ", ".join(listed[:count]) + (", …" if len(listed) > count else "")
