"""The base checkpoint's file, by content. It stays where it is; `weights` takes out of it what is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorac.digest import Digest
from lorac.engine.protocol import FileReader
from lorac.graph.nodes import Shape

NAME = "base"
VERSION = 1
SHAPE = Shape.ONE
OUTPUTS = ("file",)
INGESTS = False


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    path = Path(hints["path"])
    return [], {"file": read([(path, path.stat())], ingest=False)}, {}
