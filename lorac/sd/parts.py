"""The tensors of SD1.x's three models from whatever a base lies in, under the models' own names.

Tensors stay memory-mapped: see `formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from lorac.errors import InputError
from lorac.sd import families, formats, layout, names
from lorac.sd.config import BaseConfig, VAEGroups
from lorac.sd.families import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from lorac.sd.formats import State

_VAE_MODULES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_IGNORED = re.compile(r"position_ids$|^(text_projection|logit_scale|loss|model_ema)\b")
"""Keys inside a model that the model does not have: tables, heads that SD1.x does not use, what training left."""


@dataclass(frozen=True)
class Parts:
    """The tensors of one checkpoint, under the models' own names."""

    unet: State
    vae: State
    text: State


def open_base(path: Path, where: str, needs_vae: bool = True) -> tuple[Parts, BaseConfig]:
    """The tensors of a base, memory-mapped, and its configuration. Raises InputError when it is none of SD1.x.

    Without `needs_vae` that of the parts is empty.
    """
    if not path.is_dir():
        tensors, metadata = formats.read(path, where)
        return split(tensors, where, needs_vae), layout.file_config(metadata, tensors, where)
    config = layout.base_config(path, where, needs_vae)
    states = {
        model: _read_folder(path / name, where) for model, name in layout.MODELS.items() if needs_vae or model != "vae"
    }
    return _parts(states["unet"], states.get("vae", {}), states["text"], where), config


def open_vae(path: Path, where: str) -> tuple[State, VAEGroups]:
    """The tensors of a VAE from a file of its own, a full checkpoint, or a diffusers folder, and its configuration."""
    if path.is_dir():
        groups, tensors = layout.vae_config(path, where), _read_folder(path, where)
    else:
        tensors, metadata = formats.read(path, where)
        problems = families.vae_problems(_shapes(tensors), where)
        if problems:
            raise InputError(problems)
        groups = layout.file_config(metadata, tensors, where).vae
    own = _below(tensors, VAE_PREFIX) or tensors
    state = _vae(_renamed({key: value for key, value in own.items() if key.startswith(_VAE_MODULES)}, names.VAE))
    _check_precision([state], where)
    return state, groups


def split(tensors: State, where: Path | str, needs_vae: bool = True) -> Parts:
    """Sorts a single file's tensors into the three models and renames them; other keys (EMA, schedules) are ignored.

    `where` names the file in errors. Raises InputError when the file is of another family or lacks a whole model.
    """
    problems = families.problems(_shapes(tensors), str(where), needs_vae)
    if problems:
        raise InputError(problems)
    return _parts(
        _renamed(_below(tensors, UNET_PREFIX), names.UNET),
        _renamed(_below(tensors, VAE_PREFIX), names.VAE) if needs_vae else {},
        _below(tensors, TEXT_PREFIX),
        where,
    )


def is_vae_attention(key: str) -> bool:
    """Whether a key is of the VAE's attention weights: 1×1 convolutions in single files, matrices in the model."""
    return "mid_block.attentions.0.to_" in key and key.endswith(".weight")


def _parts(unet: State, vae: State, text: State, where: Path | str) -> Parts:
    """The models' tensors under their own names, of whichever age or origin the names are."""
    parts = Parts(unet, _vae(vae), _renamed(text, names.TEXT | names.TEXT_BARE))
    kept = Parts(*({k: v for k, v in getattr(parts, f.name).items() if not _IGNORED.search(k)} for f in fields(parts)))
    _check_precision([kept.unet, kept.vae, kept.text], where)
    return kept


def _read_folder(folder: Path, where: str) -> State:
    path = layout.weights_file(folder)
    if path is None:
        raise InputError.of(where, f"no weights in the folder {folder.name}", "download the folder again")
    return formats.read(path, str(path))[0]


def _shapes(tensors: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _below(tensors: State, prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _renamed(tensors: State, table: names.Table) -> State:
    """A key that the table lacks keeps its name, and `_mismatches` reports it."""
    return {names.rename(key, table) or key: tensor for key, tensor in tensors.items()}


def _vae(tensors: State) -> State:
    """The VAE's attention has other names in old diffusers folders; its weights are 1×1 convolutions in single files
    and matrices in the model."""
    named = {names.VAE_OLD_ATTENTION.sub(lambda m: names.VAE_OLD[m[1]], key): value for key, value in tensors.items()}
    return {key: tensor.flatten(1) if is_vae_attention(key) else tensor for key, tensor in named.items()}


def _check_precision(states: Iterable[State], where: Path | str) -> None:
    odd = {str(tensor.dtype) for state in states for tensor in state.values() if tensor.dtype not in PRECISIONS}
    if odd:
        kinds = ", ".join(sorted(name.removeprefix("torch.") for name in odd))
        raise InputError.of(where, f"it has tensors of type {kinds}", "use a version in fp16, bf16 or fp32")
