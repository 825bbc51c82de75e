"""`lorac inspect`: what a LoRA file holds, without torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorac.errors import InputError, Problem
from lorac.sd.safetensors import Header, TensorInfo, read_header

_DOWN = ".lora_down.weight"
_FLOATS = {"F16": "<e", "F32": "<f", "F64": "<d"}


def facts(path: Path) -> dict[str, Any]:
    """Modules, ranks, alphas, dtypes, hashes and metadata. Raises InputError for what is no safetensors file."""
    try:
        _check_start(path)
        header = read_header(path)
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            [Problem(str(path), f"cannot be read: {error.strerror}", "give a .safetensors file")]
        ) from error
    hashed = hashlib.sha256(data[header.data_start :]).hexdigest()
    stated = header.metadata.get("sshs_model_hash")
    parts = _parts(header, data)
    return {
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "model_hash": hashed,
        "model_hash_stated": None if stated is None else stated == hashed,
        "tensors": len(header.tensors),
        "dtypes": dict(Counter(info.dtype for info in header.tensors.values())),
        "kind": _kind(header),
        "modules": {part: sizes["modules"] for part, sizes in parts.items()},
        "ranks": _sum(sizes["ranks"] for sizes in parts.values()),
        "alphas": _sum(sizes["alphas"] for sizes in parts.values()),
        "parts": parts,
        "metadata": header.metadata,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    stated = {None: "not stated", True: "as stated", False: "NOT as stated in the file"}[found["model_hash_stated"]]
    told, parts = found["metadata"], found["parts"]
    rows = [
        ("bytes", f"{found['bytes']:,}"),
        ("sha256", found["sha256"]),
        ("model hash", f"{found['model_hash']} ({stated})"),
        ("tensors", f"{found['tensors']} ({', '.join(f'{n} {dtype}' for dtype, n in found['dtypes'].items())})"),
        ("kind", found["kind"]),
        ("modules", ", ".join(f"{count} {part}" for part, count in found["modules"].items()) or "none of a LoRA"),
        *(row for name in ("rank", "alpha") for row in _sizes(name, parts)),
        ("prediction", _short(told.get("modelspec.prediction_type", ""))),
        ("settings", _short(_settings(told.get("ss_network_args", "")))),
    ]
    text = [found["file"], *(f"  {name:<11} {value}" for name, value in rows if value), "  metadata"]
    return text + [f"    {key} = {_short(value)}" for key, value in sorted(told.items())]


def _check_start(path: Path) -> None:
    """Say what a file is not before anyone reads its first bytes as a number."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return
    cause = "this is no safetensors file" + (", but a .ckpt or another archive" if start.startswith(b"PK") else "")
    raise InputError([Problem(str(path), cause, "give a .safetensors file")])


def _kind(header: Header) -> str:
    """The network's common name, by kohya's and LyCORIS's names of tensors."""
    ends = {name.partition(".")[2] for name in header.tensors}
    downs = [info for name, info in header.tensors.items() if name.endswith(_DOWN)]
    if "dora_scale" in ends:
        return "DoRA with convolutions" if any(map(_spatial, downs)) else "DoRA"
    if downs:
        return "LoCon" if any(map(_spatial, downs)) else "LoRA"
    for word, kind in {"hada_w": "LoHa", "lokr_w": "LoKr", "lora_A": "LoRA with PEFT's names"}.items():
        if any(word in name for name in header.tensors):
            return kind
    return "no LoRA"


def _spatial(info: TensorInfo) -> bool:
    return len(info.shape) == 4 and max(info.shape[2:]) > 1


def _parts(header: Header, data: bytes) -> dict[str, dict[str, Any]]:
    """Of each part: the number of modules, and of modules by rank and by alpha."""
    parts = {}
    for part, prefix in {"text encoder": "lora_te", "U-Net": "lora_unet_"}.items():
        own = {name: info for name, info in header.tensors.items() if name.startswith(prefix)}
        ranks = Counter(max(info.shape[:1], default=0) for name, info in own.items() if name.endswith(_DOWN))
        alphas = Counter(_scalar(info, data) for name, info in own.items() if name.endswith(".alpha"))
        if ranks:
            parts[part] = {
                "modules": ranks.total(),
                "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
                "alphas": {f"{alpha:g}": count for alpha, count in sorted(alphas.items())},
            }
    return parts


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return {value: total[value] for value in sorted(total, key=float)}


def _sizes(name: str, parts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Lines of ranks or alphas: one for the file, or one for each part where they differ within it."""
    sizes = {part: facts[f"{name}s"] for part, facts in parts.items()}
    total = _sum(sizes.values())
    if len(total) < 2:
        return [(name, _counted(total))]
    return [
        (name if number == 0 else "", f"{part}: {_counted(own)}") for number, (part, own) in enumerate(sizes.items())
    ]


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in values.items())


def _settings(text: str) -> str:
    """`--network_args` as one writes them, if that is what the metadata holds."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return text
    return " ".join(f"{name}={value}" for name, value in arguments.items()) if isinstance(arguments, dict) else text


def _scalar(info: TensorInfo, data: bytes) -> float:
    """The value of a tensor with one number; NaN for any other tensor, as a strange file may have."""
    raw = data[info.start : info.end]
    raw, form = (b"\0\0" + raw, "<f") if info.dtype == "BF16" else (raw, _FLOATS.get(info.dtype, "<d"))
    return float(struct.unpack(form, raw)[0]) if len(raw) == struct.calcsize(form) else math.nan


def _short(value: str) -> str:
    text = json.dumps(value, ensure_ascii=False) if "\n" in value else value
    return text if len(text) <= 160 else text[:157] + "…"
