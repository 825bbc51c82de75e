"""A base checkpoint or a VAE, by content. It stays where it is; `weights` takes out of it what is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorac.digest import Digest, Manifest, file_digest
from lorac.engine.protocol import FileReader
from lorac.graph.nodes import Shape
from lorac.sd import layout

NAME = "base"
VERSION = 2
SHAPE = Shape.ONE
OUTPUTS = ("file",)
INGESTS = False


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    path = Path(hints["path"])
    files = layout.files(path)
    digests = read([(file, file.stat()) for file in files], ingest=False)
    return [], {"file": [_identity(path, files, digests)]}, {}


def read_again(path: Path) -> Digest:
    """What `scan` gives for a path, from the bytes that are there now."""
    files = layout.files(path)
    return _identity(path, files, [file_digest(file) for file in files])


def _identity(path: Path, files: Sequence[Path], digests: Sequence[Digest]) -> Digest:
    """A single file is its own digest, as web UIs show it; a folder is its files' names and digests."""
    if not path.is_dir():
        return digests[0]
    manifest = Manifest()
    for file, value in zip(files, digests, strict=True):
        manifest.field(file.relative_to(path).as_posix(), value)
    return manifest.key()
