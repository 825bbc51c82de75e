"""The safetensors writer against the library's reader and writer, and the header reader against hostile files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorac.errors import InputError
from lorac.sd import safetensors as ours

DTYPES = [getattr(torch, torch_name) for torch_name, _ in ours.DTYPES.values()]


def every_dtype() -> dict[str, torch.Tensor]:
    names = {dtype: f"{'zyx'[i % 3]}{i}" for i, dtype in enumerate(DTYPES)}
    tensors = {name: torch.arange(3).to(dtype) for dtype, name in names.items()}
    return tensors | {"a.alpha": torch.tensor(1.5), "empty": torch.empty(0, 4), "strided": torch.randn(4, 3).T}


def test_bytes_equal_the_librarys_where_the_library_is_deterministic() -> None:
    tensors = every_dtype()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"comment": 'いずみ "リホ" \n'}
    assert ours.serialise(tensors, metadata) == safetensors.torch.save(contiguous, metadata)


def test_the_header_begins_as_a1111_wants_and_does_not_depend_on_insertion_order(tmp_path: Path) -> None:
    tensors, metadata = every_dtype(), {"b": "2", "a": "1"}
    data = ours.serialise(tensors, metadata)
    assert data[8:].startswith(b'{"__metadata__":{"a":"1","b":"2"}')
    reversed_tensors = dict(reversed(tensors.items()))
    assert ours.serialise(reversed_tensors, {"a": "1", "b": "2"}) == data
    ours.write(tmp_path / "x.safetensors", tensors, metadata)
    assert (tmp_path / "x.safetensors").read_bytes() == data


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), st.integers(0, 99), max_size=5))
def test_what_is_written_is_read_back_by_us_and_by_the_library(sizes: dict[str, int]) -> None:
    tensors = {name: torch.arange(size, dtype=torch.float16) for name, size in sizes.items()}
    data = ours.serialise(tensors, {})
    for loaded in (safetensors.torch.load(data), ours.deserialise(data, "memory")[0]):
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_read_returns_tensors_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "名前.safetensors"
    safetensors.torch.save_file({"w": torch.arange(5), "s": torch.tensor(2.0)}, path, {"k": "v"})
    tensors, metadata = ours.read(path)
    assert metadata == {"k": "v"}
    assert torch.equal(tensors["w"], torch.arange(5))
    assert tensors["s"].shape == ()
    header = ours.read_header(path)
    assert header.tensors["w"].dtype == "I64"
    assert header.tensors["w"].shape == (5,)


def test_tensor_hash_is_over_everything_after_the_header() -> None:
    data = ours.serialise(every_dtype(), {"k": "v"})
    start = 8 + int.from_bytes(data[:8], "little")
    assert ours.tensor_hash(every_dtype() | {"strided": ours.deserialise(data, "")[0]["strided"]}) == (
        hashlib.sha256(data[start:]).hexdigest()
    )


def test_reading_a_header_imports_no_torch() -> None:
    code = "import sys, lorac.sd.safetensors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def hostile(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, shape: object = None, dtype: object = "U8", **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end], **more}


HOSTILE = {
    "empty": (b"", "has only 0 bytes"),
    "seven bytes": (b"\0" * 7, "has only 7 bytes"),
    "header of 2^63 bytes": (hostile({}, length=2**63), "more than"),
    "header over the limit": (hostile({}, length=ours.HEADER_LIMIT + 1), "more than"),
    "header longer than the file": (hostile({}, length=100), "but only 2 follow"),
    "not JSON": (hostile(b"{'a': 1}"), "Expecting property name"),
    "not UTF-8": (hostile(b'{"\xff": 1}'), "utf-8"),
    "a list": (hostile([]), "not a JSON object"),
    "deep nesting": (hostile(b"[" * 200_000), "recursion"),
    "same key twice": (hostile(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'), "twice"),
    "metadata twice": (hostile(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "metadata of numbers": (hostile({"__metadata__": {"a": 1}}), "table of strings"),
    "metadata a list": (hostile({"__metadata__": []}), "table of strings"),
    "entry a number": (hostile({"a": 1}), "not of the form"),
    "entry with more keys": (hostile({"a": entry(0, 0, x=1)}), "not of the form"),
    "entry without a shape": (hostile({"a": {"dtype": "U8", "data_offsets": [0, 0]}}), "not of the form"),
    "three offsets": (hostile({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}), "not of the form"),
    "unknown dtype": (hostile({"a": entry(0, 4, dtype="F99")}, b"1234"), "unknown dtype"),
    "negative shape": (hostile({"a": entry(0, 4, shape=[-2, -2])}, b"1234"), "natural number"),
    "boolean shape": (hostile({"a": entry(0, 1, shape=[True])}, b"1"), "natural number"),
    "fractional shape": (hostile({"a": entry(0, 4, shape=[4.0])}, b"1234"), "natural number"),
    "infinite shape": (hostile(b'{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,0]}}'), "Infinity"),
    "product that overflows": (hostile({"a": entry(0, 0, shape=[2**32, 2**32])}), "occupies 0 bytes"),
    "huge number": (hostile({"a": entry(0, 0, shape=[2**64, 0])}), "natural number"),
    "many dimensions": (hostile({"a": entry(0, 1, shape=[1] * 65)}, b"1"), "shape"),
    "wrong size": (hostile({"a": entry(0, 4, dtype="F32", shape=[2])}, b"1234"), "occupies 4 bytes"),
    "backwards": (hostile({"a": entry(4, 0, shape=[0])}, b"1234"), "occupies -4 bytes"),
    "gap at the start": (hostile({"a": entry(2, 4)}, b"1234"), "gap or an overlap"),
    "gap between": (hostile({"a": entry(0, 1), "b": entry(2, 4)}, b"1234"), "gap or an overlap"),
    "overlap": (hostile({"a": entry(0, 3), "b": entry(2, 4)}, b"1234"), "gap or an overlap"),
    "same bytes twice": (hostile({"a": entry(0, 4), "b": entry(0, 4)}, b"1234"), "gap or an overlap"),
    "data cut off": (hostile({"a": entry(0, 9)}, b"1234"), "but the file has"),
    "bytes left over": (hostile({"a": entry(0, 3)}, b"1234"), "but the file has"),
    "digits beyond Python's limit": (hostile(b'{"a":' + b"9" * 5000 + b"}"), "integer string conversion"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    for read in (ours.read_header, ours.read):
        with pytest.raises(InputError) as caught:
            read(path)
        assert reason in str(caught.value)
        assert str(path) in str(caught.value)


@given(st.data())
def test_a_damaged_file_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(ours.serialise({"a": torch.arange(4), "b": torch.ones(2, 2)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(InputError):
        ours.deserialise(cut, "damaged")
