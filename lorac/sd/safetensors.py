"""The safetensors format, with a writer whose bytes depend on its arguments only.

The library stores the metadata map in random order, so the same LoRA has another digest each time it is written
(safetensors#584). Here keys are sorted, and the layout is otherwise the library's, byte for byte:

    8 bytes    N, the length of the header, little-endian
    N bytes    {"__metadata__":{…},"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},…} and spaces up to 8·k
    the rest   the tensors without gaps, little-endian, rows first; wide types first, so that each is aligned

Some readers (A1111) insist on the first two bytes of the header, `{"`. `read_header` distrusts its input: it is the
gate for files from strangers, and it does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorac.errors import InputError, Problem

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 16 * 2**20
"""Longest header that is read, in bytes. A checkpoint's is 0.2 MB; the library's own limit is 100 MB."""

DTYPES: dict[str, tuple[str, int]] = {
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Name in the file → (name in torch, bytes per element), in the order in which the library lays tensors out."""

_RANK = {torch_name: rank for rank, (torch_name, _) in enumerate(DTYPES.values())}
_FILE_NAME = {torch_name: name for name, (torch_name, _) in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `start` and `end` count bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself. `tensors` keeps the order of the file."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    data_start: int


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file as bytes. Tensors may be of any strides and on any device."""
    order = _layout(tensors)
    return _header_bytes(order, metadata) + b"".join(_contents(order))


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file without holding it in memory twice. Not atomic: the caller renames."""
    order = _layout(tensors)
    with path.open("wb") as file:
        file.write(_header_bytes(order, metadata))
        file.writelines(_contents(order))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of everything after the header: `sshs_model_hash`, Civitai's AutoV3."""
    hasher = hashlib.sha256()
    for part in _contents(_layout(tensors)):
        hasher.update(part)
    return hasher.hexdigest()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU, metadata) of a file that passes `read_header`.

    Raises InputError for a damaged or hostile file, OSError when it cannot be read.
    """
    with path.open("rb") as file:
        header = _parse(file, str(path))
        file.seek(0)
        data = bytearray(file.read())
    return _tensors(data, header), header.metadata


def deserialise(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read`, from memory; `where` names the data in error messages."""
    from io import BytesIO

    header = _parse(BytesIO(data), where)
    return _tensors(bytearray(data), header), header.metadata


def tensors_of(blob: Path | bytes) -> dict[str, Tensor]:
    """The tensors of a file, or of a file's bytes, that lorac wrote itself."""
    return (read(blob) if isinstance(blob, Path) else deserialise(blob, "a stored file"))[0]


def read_header(path: Path) -> Header:
    """The checked header of a file.

    Raises InputError unless every rule of the format holds: header length, UTF-8, one JSON object without repeated
    keys, string metadata, known dtypes, sizes that follow from shapes, and contents without gap, overlap or rest.
    """
    with path.open("rb") as file:
        return _parse(file, str(path))


def header_of(data: bytes) -> Header:
    """The header of a file's bytes that lorac wrote itself."""
    from io import BytesIO

    return _parse(BytesIO(data), "a stored file")


def _layout(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(tensors.items(), key=lambda item: (_RANK[_torch_name(item[1])], item[0]))


def _torch_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _header_bytes(order: list[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in order:
        end = offset + tensor.numel() * tensor.element_size()
        dtype = _FILE_NAME[_torch_name(tensor)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _contents(order: list[tuple[str, Tensor]]) -> Iterator[bytes]:
    import torch

    for _, tensor in order:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(data: bytearray, header: Header) -> dict[str, Tensor]:
    import torch

    def view(info: TensorInfo) -> Tensor:
        dtype: torch.dtype = getattr(torch, DTYPES[info.dtype][0])
        if info.start == info.end:
            return torch.empty(info.shape, dtype=dtype)
        raw = torch.frombuffer(data, dtype=torch.uint8, offset=info.start, count=info.end - info.start)
        # A foreign file may hold a type at an odd address, where a view is not allowed.
        raw = raw.clone() if info.start % DTYPES[info.dtype][1] else raw
        return raw.view(dtype).reshape(info.shape)

    return {name: view(info) for name, info in header.tensors.items()}


def _parse(file: BinaryIO, where: str) -> Header:
    try:
        return _checked_header(file)
    except (ValueError, RecursionError) as error:
        remedy = "download or make it again; lorac reads .safetensors files that follow the published format"
        raise InputError([Problem(where, f"this is not a valid safetensors file: {error}", remedy)]) from error


def _checked_header(file: BinaryIO) -> Header:
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ValueError(f"it has only {size} bytes")
    length = int.from_bytes(prefix, "little")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header claims {length} bytes, more than {HEADER_LIMIT}")
    if 8 + length > size:
        raise ValueError(f"its header claims {length} bytes, but only {size - 8} follow")
    fields = json.loads(file.read(length).decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    if not isinstance(fields, dict):
        raise ValueError("its header is not a JSON object")
    metadata = _checked_metadata(fields.pop("__metadata__", {}))
    tensors = {name: _checked_tensor(name, entry, 8 + length) for name, entry in fields.items()}
    _check_contiguous(tensors, 8 + length, size)
    return Header(metadata, tensors, 8 + length)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in its header")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"its header contains {text}")


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not a table of strings")
    return metadata


def _checked_tensor(name: str, entry: object, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end], **rest} if not rest:
            pass
        case _:
            raise ValueError(f"the entry of {name!r} is not of the form dtype, shape, data_offsets")
    if dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, end)):
        raise ValueError(f"{name!r} has a shape or an offset that is not a natural number")
    if len(shape) > 64 or math.prod(shape) * DTYPES[dtype][1] != end - start:
        raise ValueError(f"{name!r} has shape {shape} and dtype {dtype}, but occupies {end - start} bytes")
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _check_contiguous(tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise ValueError(f"there is a gap or an overlap before {name!r}")
        position = info.end
    if position != size:
        raise ValueError(f"its tensors end at byte {position}, but the file has {size}")
