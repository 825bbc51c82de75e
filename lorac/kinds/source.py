"""The pictures of one source and the caption files beside them, by content.

Scanned in every build; only files whose signature changed are read. `name` is a column too, so that what shows names
(the report) is made again after a renaming, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorac.digest import Digest, digest
from lorac.engine.protocol import FileReader
from lorac.graph.nodes import Shape
from lorac.listing import pictures

NAME = "source"
VERSION = 1
SHAPE = Shape.LIST
OUTPUTS = ("picture", "caption", "name")
INGESTS = True

NO_CAPTION = b"\xfflorac: there is no caption file"
ABSENT = digest(NO_CAPTION)
"""Stands for a caption file that is not there. These bytes are not UTF-8, so no caption is like it."""


def scan(
    params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
    found = pictures(hints["path"], params["extension"])
    files = [(picture.path, picture.stat) for picture in found]
    captions = [(p.caption_path, p.caption_stat) for p in found if p.caption_path and p.caption_stat]
    digests = read([*files, *captions])
    written = iter(digests[len(files) :])
    names = [picture.name for picture in found]
    named = [digest(name.encode("utf-8", "surrogateescape")) for name in names]
    columns = {
        "picture": digests[: len(files)],
        "caption": [ABSENT if picture.caption_path is None else next(written) for picture in found],
        "name": named,
    }
    blobs = {value: name.encode("utf-8", "surrogateescape") for value, name in zip(named, names, strict=True)}
    return [picture.path for picture in found], columns, {**blobs, ABSENT: NO_CAPTION}
