"""SHA-256 digests, and the one walk over a value that both hashes it and explains it.

Everything that goes into an action key passes through `Manifest.field`. The key is the hash of those fields; `lorac
why` prints the same fields. The two can therefore never disagree (the idea is n2's).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Digest: TypeAlias = bytes
"""The 32 bytes of a SHA-256."""

Value: TypeAlias = "bool | int | float | str | bytes | Sequence[Value] | Mapping[str, Value] | None"
"""What a key can be made of. Sets are absent on purpose: sort them where they enter."""


def digest(data: bytes | memoryview) -> Digest:
    return hashlib.sha256(data).digest()


def file_digest(path: Path) -> Digest:
    """The digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def short(value: Digest) -> str:
    """The form shown to people: 12 hexadecimal digits."""
    return value.hex()[:12]


def split(joined: bytes) -> list[Digest]:
    """The digests of a column, which is nothing but these, joined."""
    return [joined[i : i + 32] for i in range(0, len(joined), 32)]


class Manifest:
    """The ordered fields of one action key, as text; the key is their framed hash.

    A field is written as two frames, name and value, each behind its length in 8 bytes, so no two different lists of
    fields give the same bytes. Floats are written in hexadecimal: equal floats and only those are equal.
    """

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self.fields: list[tuple[str, str]] = list(fields)

    def field(self, name: str, value: Value) -> None:
        """Add one value; mappings become one field per entry, sorted by key, with dotted names."""
        if isinstance(value, Mapping):
            self.fields.append((name, f"table of {len(value)}"))
            for key in sorted(value):
                self.field(f"{name}.{key}", value[key])
        else:
            self.fields.append((name, _text(value)))

    def key(self) -> Digest:
        hasher = hashlib.sha256(b"lorac key 1\0")
        # "surrogatepass" and not "surrogateescape", which writes a stray byte as itself, so that two texts look alike
        for frame in (part.encode("utf-8", "surrogatepass") for pair in self.fields for part in pair):
            hasher.update(len(frame).to_bytes(8, "little"))
            hasher.update(frame)
        return hasher.digest()

    def difference(self, older: Manifest) -> list[tuple[str, str | None, str | None]]:
        """(name, old, new) of every field that differs; None where a manifest has no such field."""
        old, new = dict(older.fields), dict(self.fields)
        names = [*new, *(name for name in old if name not in new)]
        return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _text(value: Value) -> str:
    """An unambiguous text for a value: the type shows in its spelling, and what is inside another has its length."""
    match value:
        case None | bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return value.hex()
        case str():
            return f'"{value}"'
        case bytes():
            return f"sha256:{value.hex()}"
        case Mapping():
            entries = ((key, _text(value[key])) for key in sorted(value))
            return f"{{{len(value)}: " + ", ".join(f"{len(k)}:{k}={len(text)}:{text}" for k, text in entries) + "}"
        case _:
            parts = [_text(item) for item in value]
            return f"[{len(parts)}: " + ", ".join(f"{len(part)}:{part}" for part in parts) + "]"
