"""The files the user gets: written only when all of them exist in the store, each in one step.

A null build writes nothing but `build.json` and `build.html`. A file that was edited or deleted by hand is put back.
Files that the last build made and this one does not (an epoch less) are removed, if they are still as they were made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorac.digest import Digest
from lorac.engine import events
from lorac.engine.resolve import ENDS, Result
from lorac.errors import StoreError
from lorac.graph.nodes import Node, Output
from lorac.store import files
from lorac.store.blobs import Store
from lorac.store.statcache import file_digests

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Wanted:
    """One output file: where it goes and which blob of which node it holds."""

    path: Path
    node: Node
    value: Digest


def wanted(outputs: Sequence[Output], results: Mapping[Node, Result], store: Store, folder: Path) -> list[Wanted]:
    """The files of one recipe. `{n}` in a name stands for an item's number times `every`; a column's last has none."""
    found = []
    for output in outputs:
        source, result = output.value, results[output.value.node]
        if not result.names:
            found.append(Wanted(folder / output.file, source.node, result.outputs[source.output]))
            continue
        column = result.column(source.output, store)
        if source.take in ENDS:
            found.append(Wanted(folder / output.file, source.node, column[ENDS[source.take]]))
        else:
            for number, value in enumerate(column[:-1], start=1):
                found.append(Wanted(folder / output.file.format(n=number * output.every), source.node, value))
    return found


def stale(files_wanted: Sequence[Wanted], store: Store) -> list[Wanted]:
    """Those of the files that are not there, or hold something else."""
    return [want for want in files_wanted if not _holds(want.path, want.value, store)]


def install(files_wanted: Sequence[Wanted], store: Store, folder: Path, listen: events.Listener) -> dict[str, Any]:
    """Bring the output folder up to date; returns name -> {sha256, bytes} for build.json.

    All files are complete before the first is put in its place, so that a full disk changes nothing.
    """
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    earlier, changed = _earlier(folder), stale(files_wanted, store)
    with ExitStack() as undo:
        staged = []
        for want in changed:
            staged.append(files.stage(store.open(want.value), want.path))
            undo.enter_context(files.removed_on_error(staged[-1]))
        for want, beside in zip(changed, staged, strict=True):
            files.install(beside, want.path)
    report: dict[str, Any] = {}
    for want in files_wanted:
        size = want.path.stat().st_size
        report[want.path.name] = {"sha256": want.value.hex(), "bytes": size}
        listen(events.FileWritten(shown(want.path), want.value.hex(), size, want in changed))
    for name, sha256 in earlier.items():
        path = folder / name
        if name not in report and path.is_file() and _holds(path, bytes.fromhex(sha256), store):
            files.remove(path)
    return report


def check_writable(folder: Path) -> None:
    """Raise StoreError if `folder` can neither be written nor made: better before hours of training than after."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise StoreError(
            f"{shown(place)}: is a file where the folder of the outputs must be; move it or choose another --out"
        )
    if not os.access(place, os.W_OK):
        raise StoreError(f"{shown(place)}: cannot be written; check the folder's permissions or choose another --out")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files.write(path, text.encode())


def write(path: Path, data: bytes) -> None:
    """Put a file that is no output into a recipe's folder."""
    files.write(path, data)


def shown(path: Path) -> str:
    """A path as people want to read it: relative to where they are, with forward slashes."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _holds(path: Path, value: Digest, store: Store) -> bool:
    try:
        return file_digests(store, [(path, path.stat())], ingest=False) == [value]
    except FileNotFoundError:
        return False


def _earlier(folder: Path) -> dict[str, str]:
    """name -> SHA-256 of the outputs that the last build.json lists; nothing when it is absent or unreadable."""
    try:
        outputs = json.loads((folder / "build.json").read_text("utf-8"))["outputs"]
        listed = {str(name): str(facts["sha256"]) for name, facts in outputs.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
    return {name: sha for name, sha in listed.items() if Path(name).name == name and _SHA256.fullmatch(sha)}
