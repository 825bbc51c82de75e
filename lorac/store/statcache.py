"""Which files are known not to have changed, so that a null build reads none of them.

A file is taken as unchanged while (device, inode, mode, mtime, ctime, size) are equal; inequality of any of them, not
"newer", means that it is read again, because restored backups go back in time. A file that was modified less than two
seconds before its reading began is not remembered: a second edit of the same size within one clock tick would be
invisible (git calls such files "racily clean").
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from lorac.digest import Digest, file_digest
from lorac.errors import InputError, Problem
from lorac.store.blobs import Store

TOO_YOUNG_NS = 2_000_000_000
TRIES = 3
"""How often a file is read that somebody is writing; what the last try saw is taken, and read again next time."""


_SEPARATOR = os.sep.encode()
_FIELDS = struct.Struct("<6Q")
_64_BITS = (1 << 64) - 1
_HAS_INODES = os.name != "nt"


def signature(status: os.stat_result) -> bytes:
    """What is compared instead of contents. Windows' folder listings tell neither device nor inode."""
    return _FIELDS.pack(
        status.st_dev & _64_BITS if _HAS_INODES else 0,
        status.st_ino & _64_BITS if _HAS_INODES else 0,
        status.st_mode,
        status.st_mtime_ns & _64_BITS,  # before 1970 it is negative
        status.st_ctime_ns & _64_BITS,
        status.st_size,
    )


def file_digests(
    store: Store, paths: Sequence[tuple[str | Path, os.stat_result]], *, ingest: bool = True
) -> list[Digest]:
    """The digest of each file, read only if it is not known; new files are ingested into the store on the way.

    `ingest=False` only hashes: for base checkpoints, which are read from where they are. Raises InputError for files
    that cannot be read, all at once.
    """
    folders: dict[bytes, dict[bytes, tuple[bytes, Digest]]] = {}
    fresh: dict[bytes, list[tuple[bytes, bytes, Digest]]] = {}
    blobs: list[tuple[Digest, bytes]] = []
    problems: list[Problem] = []
    digests: list[Digest] = []
    for path, status in paths:
        folder, _, name = os.fsencode(path).rpartition(_SEPARATOR)
        if folder not in folders:
            folders[folder] = store.ledger.stats(folder)
        known = folders[folder].get(name)
        if known is not None and known[0] == signature(status):
            digests.append(known[1])
            continue
        try:
            value, data, settled = _read(store, Path(path), signature(status), ingest)
        except OSError as error:
            cause = f"cannot be read: {error.strerror or error}"
            problems.append(Problem(str(path), cause, "check the file and its permissions"))
            continue
        if data is not None:
            blobs.append((value, data))
        digests.append(value)
        if settled is not None:
            fresh.setdefault(folder, []).append((name, settled, value))
    if problems:
        raise InputError(problems)
    if fresh or blobs:
        with store.ledger.transaction():
            store.ledger.put_blobs(blobs)
            for folder, rows in fresh.items():
                store.ledger.put_stats(folder, rows)
    return digests


def _read(store: Store, path: Path, before: bytes, ingest: bool) -> tuple[Digest, bytes | None, bytes | None]:
    """(digest, data of a small file, signature to remember it by); again if the file changes while it is read."""
    for _ in range(TRIES):
        begun = time.time_ns()
        value, data = store.ingest(path) if ingest else (file_digest(path), None)
        after = os.stat(path)
        if signature(after) == before:
            return value, data, before if _old_enough(after, begun) else None
        before = signature(after)
    return value, data, None


def _old_enough(status: os.stat_result, begun: int) -> bool:
    """Whether a file had settled when its reading began: a look at the clock afterwards would forgive slow reading."""
    return stat.S_ISREG(status.st_mode) and begun - max(status.st_mtime_ns, status.st_ctime_ns) > TOO_YOUNG_NS
