"""Just enough of protobuf to see whether an ONNX file refers to other files.

A tensor may lie in a file that the model names by a path, which can lead anywhere. Only numbers and nesting are read
(the field numbers are those of onnx.proto3), so nothing of the file is interpreted before it has been looked through.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message -> its fields that hold messages which may lead to a tensor
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_DEEPEST = 64


class NotProtobuf(ValueError):
    """The bytes are not what they should be."""


def external_tensors(model: bytes) -> list[str]:
    """The names of an ONNX model's tensors that lie in other files. Raises NotProtobuf."""
    return list(_external(memoryview(model), "model", 0))


def _external(data: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise NotProtobuf("too deeply nested")
    if message == "tensor":
        name, elsewhere = "", False
        for field, value in _fields(data):
            if field == _NAME and isinstance(value, memoryview):
                name = bytes(value).decode("utf-8", "replace")
            elsewhere |= field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)
        if elsewhere:
            yield name
        return
    below = _BELOW[message]
    for field, value in _fields(data):
        if field in below and isinstance(value, memoryview):
            yield from _external(value, below[field], depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of the fields of one message; a value of bytes is not copied."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise NotProtobuf(f"wire type {kind}")
        if size > len(data) - at:
            raise NotProtobuf("cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, where the next thing begins)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise NotProtobuf("cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise NotProtobuf("a number without an end")
