"""`lorac inspect`: what a LoRA file holds, without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from lorac.errors import InputError, Problem
from lorac.sd.safetensors import Header, TensorInfo, read_header

_FLOATS = {"F16": "<e", "F32": "<f", "F64": "<d"}


def facts(path: Path) -> dict[str, Any]:
    """Modules, ranks, alphas, dtypes, hashes and metadata. Raises InputError for what is no safetensors file."""
    try:
        header = read_header(path)
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            [Problem(str(path), f"cannot be read: {error.strerror}", "give a .safetensors file")]
        ) from error
    hashed = hashlib.sha256(data[header.data_start :]).hexdigest()
    stated = header.metadata.get("sshs_model_hash")
    return {
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "model_hash": hashed,
        "model_hash_stated": None if stated is None else stated == hashed,
        "tensors": len(header.tensors),
        "dtypes": dict(Counter(info.dtype for info in header.tensors.values())),
        "modules": _modules(header),
        "ranks": _ranks(header),
        "alphas": _alphas(header, data),
        "metadata": header.metadata,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    stated = {None: "not stated", True: "as stated", False: "NOT as stated in the file"}[found["model_hash_stated"]]
    rows = [
        ("bytes", f"{found['bytes']:,}"),
        ("sha256", found["sha256"]),
        ("model hash", f"{found['model_hash']} ({stated})"),
        ("tensors", f"{found['tensors']} ({', '.join(f'{n} {dtype}' for dtype, n in found['dtypes'].items())})"),
        ("modules", ", ".join(f"{count} {part}" for part, count in found["modules"].items()) or "none of a LoRA"),
        ("rank", ", ".join(f"{rank} ({count})" for rank, count in found["ranks"].items())),
        ("alpha", ", ".join(f"{alpha} ({count})" for alpha, count in found["alphas"].items())),
    ]
    text = [found["file"], *(f"  {name:<11} {value}" for name, value in rows if value), "  metadata"]
    return text + [f"    {key} = {_short(value)}" for key, value in sorted(found["metadata"].items())]


def _modules(header: Header) -> dict[str, int]:
    parts = {"text encoder": "lora_te", "U-Net": "lora_unet_"}
    downs = [name for name in header.tensors if name.endswith(".lora_down.weight")]
    counts = {part: sum(name.startswith(prefix) for name in downs) for part, prefix in parts.items()}
    return {part: count for part, count in counts.items() if count}


def _ranks(header: Header) -> dict[str, int]:
    ranks = Counter(info.shape[0] for name, info in header.tensors.items() if name.endswith(".lora_down.weight"))
    return {str(rank): count for rank, count in sorted(ranks.items())}


def _alphas(header: Header, data: bytes) -> dict[str, int]:
    found = Counter(_scalar(info, data) for name, info in header.tensors.items() if name.endswith(".alpha"))
    return {f"{alpha:g}": count for alpha, count in sorted(found.items())}


def _scalar(info: TensorInfo, data: bytes) -> float:
    raw = data[info.start : info.end]
    if info.dtype == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    return float(struct.unpack(_FLOATS[info.dtype], raw)[0]) if info.dtype in _FLOATS else float("nan")


def _short(value: str) -> str:
    text = json.dumps(value, ensure_ascii=False) if "\n" in value else value
    return text if len(text) <= 160 else text[:157] + "…"
