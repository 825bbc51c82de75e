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
from typing import Any

from lorac.digest import Digest, Manifest, split
from lorac.errors import StoreError
from lorac.store import files

FORMAT = 1
"""Bumped when a table changes; a ledger of another format is set aside, and its blobs are found again by content."""

# The rows of `blob` are large, so it has a rowid: the index, which is asked far more often, then fits into a few pages.
_TABLES = """
CREATE TABLE IF NOT EXISTS action (
    key BLOB PRIMARY KEY, kind TEXT NOT NULL, outputs BLOB NOT NULL, seconds REAL NOT NULL, measures TEXT NOT NULL,
    made REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blob (digest BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS stat (
    folder BLOB, name BLOB, signature BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last (
    target TEXT PRIMARY KEY, build INTEGER NOT NULL, ran INTEGER NOT NULL, total INTEGER NOT NULL,
    manifest TEXT NOT NULL, previous TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS builds (number INTEGER PRIMARY KEY);
"""
_CHUNK = 500  # SQLite's limit on `?` was 999 for a long time
_BUSY_SECONDS = 60.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLite's codes for a file that is not what it wrote; ERROR is a table or column that is not there."""


@dataclass(frozen=True)
class Action:
    """A trace: what running an action gave, and what it cost."""

    outputs: bytes
    seconds: float
    measures: Mapping[str, Any]

    def digests(self) -> list[Digest]:
        return split(self.outputs)


@dataclass(frozen=True)
class Last:
    """How a target was last built: in which build its key last changed, how many of its items ran then, and why."""

    build: int
    ran: int
    total: int
    manifest: Manifest
    previous: Manifest | None


class _Busy(StoreError):
    """Another process holds the database."""


class LedgerDamaged(StoreError):
    """The database file is not what SQLite wrote; it is set aside when the ledger is closed or reopened."""


class Ledger:
    """The database. Any thread may read; writes happen inside `transaction()`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._damaged = False
        with files.explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = self._open()

    def close(self) -> None:
        self._db.close()
        if self._damaged:
            self._set_aside("damaged")

    def reopen(self) -> None:
        """After LedgerDamaged: begin with an empty database. What was in the old one can be made again."""
        self.close()
        self._damaged = False
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            with self._explained():
                database = sqlite3.connect(
                    self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
                )
            database.text_factory = lambda data: data.decode("utf-8", "replace")  # damaged text is for us to judge
            try:
                with self._explained():
                    found = self._prepare(database)
                if found == FORMAT:
                    return database
                reason = f"format-{found}"
            except LedgerDamaged:
                self._damaged, reason = False, "damaged"
            except _Busy:  # SQLite does not wait while another process makes the database
                database.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
                continue
            except BaseException:
                database.close()
                raise
            database.close()
            self._set_aside(reason)

    @staticmethod
    def _prepare(database: sqlite3.Connection) -> int:
        """Make the tables of a new database; returns the format. Writes nothing when there is nothing to make."""
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if database.execute("PRAGMA user_version").fetchone()[0] == 0:
            database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
        return int(database.execute("PRAGMA user_version").fetchone()[0])

    def _set_aside(self, reason: str) -> None:
        aside = self._path.with_name(f"{self._path.stem}-{reason}-{time.time_ns()}.db")
        files.move(self._path, aside)
        for suffix in ("-wal", "-shm"):
            files.remove(self._path.with_name(self._path.name + suffix))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors as messages with a remedy."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                if not hasattr(error, "sqlite_errorcode"):  # not from the file: a mistake of ours
                    raise
                raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> StoreError:
        code = error.sqlite_errorcode & 0xFF
        if code in _DAMAGED:
            self._damaged = True
            return LedgerDamaged(f"{self._path}: damaged: {error}; it is set aside, build again")
        # SQLite says IOERR where it cannot make its shared-memory file on a full disk.
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and files.nothing_left(self._path.parent)):
            return StoreError(f"{self._path}: {error}; free some space and build again: what is finished is kept")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return _Busy(f"{self._path}: {error}; is another program using the store? End it, and build again")
        return StoreError(f"{self._path}: {error}; check the folder and its disk, or choose another one with --store")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside appear together, or not at all."""
        with self._explained():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, keys: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
        """Rows of `query`, whose `%s` becomes a list of placeholders for the keys; damaged rows are passed over."""
        keys = sorted(keys)  # neighbours in the index are on the same page
        with self._explained():
            for start in range(0, len(keys), _CHUNK):
                part = keys[start : start + _CHUNK]
                for row in self._db.execute(query % ",".join("?" * len(part)), part):
                    if type(row[0]) is bytes and type(row[-1]) is bytes:  # one or two columns
                        yield row

    # -- actions -----------------------------------------------------------------------------------------------------

    def action(self, key: Digest) -> Action | None:
        with self._explained():
            row = self._db.execute("SELECT outputs, seconds, measures FROM action WHERE key = ?", (key,)).fetchone()
        try:
            return Action(bytes(row[0]), float(row[1]), dict(json.loads(row[2]))) if row else None
        except (TypeError, ValueError):  # a damaged row is an unknown action
            return None

    def outputs(self, keys: Sequence[Digest]) -> dict[Digest, bytes]:
        """The joined output digests of those of the keys that are known."""
        return dict(self._rows("SELECT key, outputs FROM action WHERE key IN (%s)", keys))  # type: ignore[arg-type]

    def record(self, key: Digest, kind: str, outputs: bytes, seconds: float, measures: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO action VALUES (?, ?, ?, ?, ?, ?)",
            (key, kind, outputs, seconds, json.dumps(dict(measures), sort_keys=True), time.time()),
        )

    def forget(self, keys: Iterable[Digest], lost: Iterable[Digest]) -> None:
        """Drop these traces, every trace that promises lost bytes, and what is known of files that held them."""
        doomed = [(key,) for key in keys]
        if wanted := frozenset(lost):  # reads both tables, once, which only happens when the store was damaged
            for key, outputs in self._db.execute("SELECT key, outputs FROM action"):
                if type(outputs) is not bytes or not wanted.isdisjoint(split(outputs)):
                    doomed.append((key,))
            known = self._db.execute("SELECT folder, name, digest FROM stat").fetchall()
            stale = [(folder, name) for folder, name, digest in known if digest in wanted]
            self._db.executemany("DELETE FROM stat WHERE folder = ? AND name = ?", stale)
        self._db.executemany("DELETE FROM action WHERE key = ?", doomed)

    # -- small blobs -------------------------------------------------------------------------------------------------

    def blobs(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return dict(self._rows("SELECT digest, data FROM blob WHERE digest IN (%s)", digests))  # type: ignore[arg-type]

    def known(self, digests: Sequence[Digest]) -> set[Digest]:
        return {row[0] for row in self._rows("SELECT digest FROM blob WHERE digest IN (%s)", digests)}

    def put_blobs(self, blobs: Iterable[tuple[Digest, bytes]]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO blob VALUES (?, ?)", blobs)

    def drop_blob(self, digest: Digest) -> None:
        self._db.execute("DELETE FROM blob WHERE digest = ?", (digest,))

    # -- known files -------------------------------------------------------------------------------------------------

    def stats(self, folder: bytes) -> dict[bytes, tuple[bytes, Digest]]:
        """name -> (signature, digest) of every known file in a folder."""
        with self._explained():
            rows = self._db.execute("SELECT name, signature, digest FROM stat WHERE folder = ?", (folder,))
            return {name: (known, digest) for name, known, digest in rows if type(digest) is bytes}

    def put_stats(self, folder: bytes, rows: Iterable[tuple[bytes, bytes, Digest]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO stat VALUES (?, ?, ?, ?)", [(folder, name, sig, value) for name, sig, value in rows]
        )

    # -- why ---------------------------------------------------------------------------------------------------------

    def new_build(self) -> int:
        """The number of a new build."""
        with self.transaction():
            cursor = self._db.execute("INSERT INTO builds VALUES (NULL)")
            return int(cursor.lastrowid or 0)

    def last(self, target: str) -> Last | None:
        with self._explained():
            row = self._db.execute(
                "SELECT build, ran, total, manifest, previous FROM last WHERE target = ?", (target,)
            ).fetchone()
        try:
            build, ran, total, manifest, previous = row
            older = _manifest(previous) if previous else None
            return Last(int(build), int(ran), int(total), _manifest(manifest), older)
        except (TypeError, ValueError):  # never built, or a damaged row
            return None

    def put_last(self, target: str, last: Last) -> None:
        previous = json.dumps(last.previous.fields) if last.previous else None
        self._db.execute(
            "INSERT OR REPLACE INTO last VALUES (?, ?, ?, ?, ?, ?)",
            (target, last.build, last.ran, last.total, json.dumps(last.manifest.fields), previous),
        )


def _manifest(text: str) -> Manifest:
    return Manifest((name, value) for name, value in json.loads(text))
