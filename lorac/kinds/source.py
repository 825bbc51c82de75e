"""The pictures of one source and the caption files beside them, by content.

Scanned in every build; only files whose signature changed are read. `name` is a column too, so that what shows names
(the report) is made again after a renaming, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorac.digest import Digest, digest
from lorac.engine.protocol import FileReader
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Shape
from lorac.listing import pictures

NAME = "source"
VERSION = 1
SHAPE = Shape.LIST
OUTPUTS = ("picture", "caption", "name")
INGESTS = True

ABSENT = digest(b"")
"""Stands for "there is no caption file"; an empty one is an error, so the two cannot be taken for each other."""


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    found = pictures(hints["path"], params["extension"])
    empty = [
        Problem(str(picture.caption_path), "the caption is empty", "write its tags, or delete it to use the triggers alone")
        for picture in found
        if picture.caption_stat is not None and picture.caption_stat.st_size == 0
    ]
    if empty:
        raise InputError(empty)
    files = [(picture.path, picture.stat) for picture in found]
    captions = [(picture.caption_path, picture.caption_stat) for picture in found if picture.caption_path is not None]
    digests = read(files + captions)
    written = iter(digests[len(files) :])
    names = [picture.name for picture in found]
    named = [digest(name.encode("utf-8", "surrogateescape")) for name in names]
    columns = {
        "picture": digests[: len(files)],
        "caption": [ABSENT if picture.caption_path is None else next(written) for picture in found],
        "name": named,
    }
    blobs = {value: name.encode("utf-8", "surrogateescape") for value, name in zip(named, names, strict=True)}
    return [picture.path for picture in found], columns, {**blobs, ABSENT: b""}
