"""The tagger's selected_tags.csv, by content: what its outputs mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorac.digest import Digest
from lorac.engine.protocol import FileReader
from lorac.graph.nodes import Shape
from lorac.kinds.tagger import read_one

NAME = "vocabulary"
VERSION = 1
SHAPE = Shape.ONE
OUTPUTS = ("file",)
INGESTS = True


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    return [], {"file": read_one(Path(hints["path"]), read, ingest=True)}, {}
