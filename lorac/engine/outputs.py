"""The files the user gets: written only when all of them exist in the store, each in one step.

A null build writes nothing but `build.json`. A file that was edited or deleted by hand is put back. Files that the last
build made and this one does not (an epoch less) are removed, if they are still as they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorac.digest import Digest
from lorac.engine import events
from lorac.engine.resolve import ENDS, Result
from lorac.graph.nodes import Node, Output
from lorac.store import files
from lorac.store.blobs import Store
from lorac.store.statcache import file_digests


@dataclass(frozen=True)
class Wanted:
    """One output file: where it goes and which blob of which node it holds."""

    path: Path
    node: Node
    value: Digest


def wanted(outputs: Sequence[Output], results: Mapping[Node, Result], store: Store, folder: Path) -> list[Wanted]:
    """The files of one recipe. `{n}` in a name stands for an item's number; the last item of a column has no number."""
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
                found.append(Wanted(folder / output.file.format(n=number), source.node, value))
    return found


def install(files_wanted: Sequence[Wanted], store: Store, folder: Path, listen: events.Listener) -> dict[str, Any]:
    """Bring the output folder up to date; returns name -> {sha256, bytes} for build.json."""
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(folder)
    report: dict[str, Any] = {}
    for want in files_wanted:
        unchanged = _holds(want.path, want.value, store)
        if not unchanged:
            store.export(want.value, want.path)
        size = want.path.stat().st_size
        report[want.path.name] = {"sha256": want.value.hex(), "bytes": size}
        listen(events.FileWritten(shown(want.path), want.value.hex(), size, not unchanged))
    for name, facts in earlier.items():
        path = folder / name
        if name not in report and path.parent == folder and _holds(path, bytes.fromhex(facts["sha256"]), store):
            path.unlink()
    return report


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files.write(path, text.encode(), durable=False)


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


def _earlier(folder: Path) -> dict[str, Any]:
    """The outputs that the last build.json lists; nothing when it is absent or unreadable."""
    try:
        outputs = json.loads((folder / "build.json").read_text("utf-8"))["outputs"]
        return {name: facts for name, facts in outputs.items() if isinstance(facts.get("sha256"), str)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
