"""The SQLite database beside the blobs: what has been built, small blobs, known files, and why things last ran.

    action   key -> outputs        32 bytes for each of the kind's outputs, in the kind's order; never updated in place
    blob     digest -> data        blobs of at most `blobs.ROW_LIMIT` bytes
    stat     folder, name -> digest, valid while the file's signature is unchanged
    last     target -> manifest    of the last build and of the one before it, for `lorac why`

One writer at a time; readers go on (WAL). `synchronous=FULL` makes a commit survive a power cut for 0.15 ms.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorac.digest import Digest, Manifest
from lorac.errors import StoreError

FORMAT = 1
"""Bumped when a table changes; a ledger of another format is set aside, and its blobs are found again by content."""

_TABLES = """
CREATE TABLE IF NOT EXISTS action (
    key BLOB PRIMARY KEY, kind TEXT NOT NULL, outputs BLOB NOT NULL, seconds REAL NOT NULL, measures TEXT NOT NULL,
    made REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blob (digest BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stat (
    folder BLOB, name BLOB, signature BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last (
    target TEXT PRIMARY KEY, build INTEGER NOT NULL, ran INTEGER NOT NULL, total INTEGER NOT NULL,
    manifest TEXT NOT NULL, previous TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS builds (number INTEGER PRIMARY KEY);
"""
_CHUNK = 500  # SQLite's limit on `?` was 999 for a long time


@dataclass(frozen=True)
class Action:
    """A trace: what running an action gave, and what it cost."""

    outputs: bytes
    seconds: float
    measures: Mapping[str, float]

    def digests(self) -> list[Digest]:
        return [self.outputs[i : i + 32] for i in range(0, len(self.outputs), 32)]


@dataclass(frozen=True)
class Last:
    """How a target was last built: in which build its key last changed, how many of its items ran then, and why."""

    build: int
    ran: int
    total: int
    manifest: Manifest
    previous: Manifest | None


class Ledger:
    """The database. Any thread may read; writes happen inside `transaction()`."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._open(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreError(f"{path}: cannot be opened: {error}; choose another folder with --store") from error

    def _open(self, path: Path) -> sqlite3.Connection:
        database = self._connect(path)
        try:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if found in (0, FORMAT):
                database.executescript(_TABLES)
                database.execute(f"PRAGMA user_version = {FORMAT}")
                return database
            reason = f"format-{found}"
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            reason = "damaged"  # not a database any more: start afresh, nothing in it cannot be made again
        database.close()
        path.replace(path.with_name(f"{path.stem}-{reason}-{time.time_ns()}.db"))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return self._open(path)

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
        return database

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside appear together, or not at all."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                remedy = "free some space" if "full" in str(error) else "is another program using the store?"
                raise StoreError(f"the store's ledger cannot be written: {error}; {remedy}, then build again") from error

    def _rows(self, query: str, keys: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
        """Rows of `query`, whose `%s` becomes a list of placeholders for the keys."""
        with self._lock:
            for start in range(0, len(keys), _CHUNK):
                part = keys[start : start + _CHUNK]
                yield from self._db.execute(query % ",".join("?" * len(part)), part)

    # -- actions ------------------------------------------------------------------------------------------------------

    def action(self, key: Digest) -> Action | None:
        with self._lock:
            row = self._db.execute("SELECT outputs, seconds, measures FROM action WHERE key = ?", (key,)).fetchone()
        return Action(row[0], row[1], json.loads(row[2])) if row else None

    def outputs(self, keys: Sequence[Digest]) -> dict[Digest, bytes]:
        """The joined output digests of those of the keys that are known."""
        return dict(self._rows("SELECT key, outputs FROM action WHERE key IN (%s)", keys))  # type: ignore[arg-type]

    def record(self, key: Digest, kind: str, outputs: bytes, seconds: float, measures: Mapping[str, float]) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO action VALUES (?, ?, ?, ?, ?, ?)",
            (key, kind, outputs, seconds, json.dumps(dict(measures), sort_keys=True), time.time()),
        )

    def forget(self, key: Digest, lost: Iterable[Digest]) -> None:
        """Drop a node's trace, every trace that promises lost bytes, and what is known of files that held them."""
        self._db.execute("DELETE FROM action WHERE key = ?", (key,))
        for digest in lost:  # reads the whole table, which only happens when the store was damaged
            self._db.execute("DELETE FROM action WHERE instr(outputs, ?) > 0", (digest,))
            self._db.execute("DELETE FROM stat WHERE digest = ?", (digest,))

    # -- small blobs --------------------------------------------------------------------------------------------------

    def blobs(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return dict(self._rows("SELECT digest, data FROM blob WHERE digest IN (%s)", digests))  # type: ignore[arg-type]

    def known(self, digests: Sequence[Digest]) -> set[Digest]:
        return {row[0] for row in self._rows("SELECT digest FROM blob WHERE digest IN (%s)", digests)}

    def put_blobs(self, blobs: Iterable[tuple[Digest, bytes]]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO blob VALUES (?, ?)", blobs)

    def drop_blob(self, digest: Digest) -> None:
        self._db.execute("DELETE FROM blob WHERE digest = ?", (digest,))

    # -- known files --------------------------------------------------------------------------------------------------

    def stats(self, folder: bytes) -> dict[bytes, tuple[bytes, Digest]]:
        """name -> (signature, digest) of every known file in a folder."""
        with self._lock:
            rows = self._db.execute("SELECT name, signature, digest FROM stat WHERE folder = ?", (folder,))
            return {name: (signature, digest) for name, signature, digest in rows}

    def put_stats(self, folder: bytes, rows: Iterable[tuple[bytes, bytes, Digest]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO stat VALUES (?, ?, ?, ?)", [(folder, name, sig, value) for name, sig, value in rows]
        )

    # -- why ----------------------------------------------------------------------------------------------------------

    def new_build(self) -> int:
        """The number of a new build."""
        with self.transaction():
            cursor = self._db.execute("INSERT INTO builds VALUES (NULL)")
            return int(cursor.lastrowid or 0)

    def last(self, target: str) -> Last | None:
        with self._lock:
            row = self._db.execute(
                "SELECT build, ran, total, manifest, previous FROM last WHERE target = ?", (target,)
            ).fetchone()
        if row is None:
            return None
        build, ran, total, manifest, previous = row
        return Last(build, ran, total, _manifest(manifest), _manifest(previous) if previous else None)

    def put_last(self, target: str, last: Last) -> None:
        previous = json.dumps(last.previous.fields) if last.previous else None
        self._db.execute(
            "INSERT OR REPLACE INTO last VALUES (?, ?, ?, ?, ?, ?)",
            (target, last.build, last.ran, last.total, json.dumps(last.manifest.fields), previous),
        )


def _manifest(text: str) -> Manifest:
    return Manifest((name, value) for name, value in json.loads(text))
