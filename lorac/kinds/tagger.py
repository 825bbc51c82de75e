"""The tagger's model.onnx, by content. It stays where it is; `tag` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorac.digest import Digest
from lorac.engine.protocol import FileReader
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Shape
from lorac.listing import shown_path

NAME = "tagger"
VERSION = 1
SHAPE = Shape.ONE
OUTPUTS = ("file",)
INGESTS = False


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    path = Path(hints["path"])
    found = read_one(path, read, ingest=False)
    wanted = hints["sha256"]
    if wanted is not None and found[0].hex() != wanted:
        cause = f"has the SHA-256 {found[0].hex()}, and the recipe wants {wanted}"
        raise InputError([Problem(shown_path(path), cause, "get the file that is meant, or change tagger.sha256")])
    return [], {"file": found}, {}


def read_one(path: Path, read: FileReader, *, ingest: bool) -> list[Digest]:
    """The digest of one of the tagger's files. Raises InputError if it is not there."""
    try:
        return read([(path, path.stat())], ingest=ingest)
    except OSError as error:
        remedy = 'tagger.model is "builtin:mini", or a folder with model.onnx and selected_tags.csv'
        problem = Problem(shown_path(path), f"the tagger's file cannot be read: {error.strerror}", remedy)
        raise InputError([problem]) from error
