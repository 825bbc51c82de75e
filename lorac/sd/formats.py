"""Reading tensors from the files that models come in, without holding them in memory.

Tensors are views of the memory-mapped file: a page is in memory while it is used, and the system takes it back when it
needs it. Pickles are read by `torch.load(weights_only=True)` alone, which runs no code of the file.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorac.errors import InputError
from lorac.sd.layout import CONVERT, is_torch_file

State = dict[str, Tensor]

_WRAPPER = "state_dict"


def read(path: Path, where: str) -> tuple[State, dict[str, str]]:
    """(tensors, metadata) of a file of either kind. Raises InputError, with `where` as the place, when it cannot be."""
    try:
        return (_read_torch(path, where), {}) if is_torch_file(path) else _read_safetensors(path)
    except FileNotFoundError:
        raise InputError.of(
            where, "no such checkpoint", "give the path of an SD1.x checkpoint, or builtin:mini"
        ) from None
    except (OSError, SafetensorError) as error:
        raise InputError.of(where, f"not a readable .safetensors file ({error})", "download or copy it again") from None


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_torch(path: Path, where: str) -> State:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        cause = f"this pickle needs code to be read ({_needed(path)}), which lorac does not run"
        raise InputError.of(where, cause, CONVERT) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError.of(
            where, f"torch cannot read this file ({_first_line(error)})", "download or copy it again"
        ) from None
    if isinstance(data, dict) and isinstance(data.get(_WRAPPER), dict):
        data = data[_WRAPPER]
    tensors = _flat(data) if isinstance(data, dict) else {}
    if not tensors:
        raise InputError.of(where, "there are no tensors with names in this file", "use a full SD1.x checkpoint")
    return tensors


def _flat(data: dict[Any, Any], prefix: str = "") -> State:
    """The tensors in nested dictionaries, with their names joined by dots; anything else is not of a model."""
    tensors: State = {}
    for key, value in data.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value.detach()
        elif isinstance(value, dict) and not prefix:
            tensors |= _flat(value, f"{key}.")
    return tensors


def _needed(path: Path) -> str:
    """The names in a pickle that weights-only reading refuses; they are found without running it."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the file may be damaged as well
        names = []
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "of a kind that is not named"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
