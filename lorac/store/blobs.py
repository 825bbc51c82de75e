"""The content-addressed store: put bytes in, get a digest; the digest gives the same bytes or nothing.

    .lorac/
      ledger.db                   see ledger.py
      cas/ab/cdef…                blobs of more than ROW_LIMIT bytes, named by their SHA-256
      scratch/<action key>/       what an unfinished action keeps for its next try (a training snapshot)

Every read checks the digest (once per process for files). A blob that is missing or damaged raises `BlobMissing`; the
executor then makes it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lorac.digest import Digest, digest, file_digest
from lorac.store import files
from lorac.store.ledger import Ledger

ROW_LIMIT = 64 * 1024
"""Up to this size a blob is a row: 10,000 captions are one transaction of 24 ms instead of 24 s of flushed files."""


class BlobMissing(Exception):
    """The store does not hold these bytes (any more)."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(digest.hex())


class Store:
    """Blobs and ledger under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.ledger = Ledger(self.root / "ledger.db")
        self._verified: set[Digest] = set()

    def close(self) -> None:
        self.ledger.close()

    def file(self, value: Digest) -> Path:
        """Where a large blob lies, whether or not it exists."""
        name = value.hex()
        return self.root / "cas" / name[:2] / name[2:]

    def scratch(self, key: Digest) -> Path:
        """A folder that an action may use, and finds again after a crash; `drop_scratch` removes it."""
        return self.root / "scratch" / key.hex()[:32]

    def keep(self, key: Digest, name: str, write: Callable[[Path], None]) -> None:
        """Put a file into an action's scratch folder in one step; `write` fills it."""
        folder = self.scratch(key)
        temporary = folder / f".{uuid.uuid4().hex[:12]}.tmp"
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                write(temporary)
                files.adopt(temporary, folder / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def drop_scratch(self, key: Digest) -> None:
        files.remove_tree(self.scratch(key))

    # -- writing: large blobs at once, small ones as rows of the caller's transaction -----------------------------------

    def put(self, values: Iterable[bytes | Path]) -> list[Digest]:
        """Store byte strings, and finished temporary files (which are moved); inside `ledger.transaction()`."""
        digests: list[Digest] = []
        rows: list[tuple[Digest, bytes]] = []
        for value in values:
            if isinstance(value, Path):
                data, name = None, file_digest(value)
                if value.stat().st_size <= ROW_LIMIT:
                    data = value.read_bytes()
                    value.unlink()
                else:
                    files.adopt(value, self.file(name))
                    self._verified.add(name)
            else:
                data, name = value, digest(value)
            digests.append(name)
            if data is None:
                continue
            if len(data) <= ROW_LIMIT:
                rows.append((name, data))
            elif not self.file(name).exists() or self.file(name).stat().st_size != len(data):
                files.write(self.file(name), data)
                self._verified.add(name)
        self.ledger.put_blobs(rows)
        return digests

    def ingest(self, path: Path) -> tuple[Digest, bytes | None]:
        """Read a user's file once: (digest, data) for a small one, which the caller puts as a row; a large one is copied.

        The copy is hashed while it is written, so the digest is that of the bytes in the store even when the file
        changes meanwhile. It is not flushed: if a power cut damages it, the file is read again.
        """
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= ROW_LIMIT:
                data = file.read()
                return digest(data), data
            temporary = self.root / "cas" / f".{uuid.uuid4().hex[:12]}.tmp"
            hasher = hashlib.sha256()
            with files.explained(temporary):
                temporary.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with temporary.open("wb") as copy:
                        while piece := file.read(1 << 20):
                            hasher.update(piece)
                            copy.write(piece)
                    name = hasher.digest()
                    self.file(name).parent.mkdir(parents=True, exist_ok=True)
                    files.rename(temporary, self.file(name))
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        self._verified.add(name)
        return name, None

    # -- reading --------------------------------------------------------------------------------------------------------

    def read(self, value: Digest) -> bytes:
        """The bytes of a blob. Raises BlobMissing."""
        return self.read_many([value])[value]

    def read_many(self, values: Sequence[Digest]) -> Mapping[Digest, bytes]:
        """The bytes of many blobs, checked. Raises BlobMissing for the first that is missing or damaged."""
        found = self.ledger.blobs(list(dict.fromkeys(values)))
        for name, data in found.items():
            if digest(data) != name:
                with self.ledger.transaction():
                    self.ledger.drop_blob(name)
                raise BlobMissing(name)
        for name in values:
            if name not in found:
                found[name] = self.location(name).read_bytes()
        return found

    def location(self, value: Digest) -> Path:
        """The file of a large blob, verified once per process, so that it can be mapped instead of read."""
        path = self.file(value)
        if value not in self._verified:
            if not path.exists():
                raise BlobMissing(value)
            if file_digest(path) != value:
                path.unlink()
                raise BlobMissing(value)
            self._verified.add(value)
        return path

    def missing(self, values: Iterable[Digest]) -> set[Digest]:
        """Those of the digests of which the store holds nothing; does not read the blobs."""
        wanted = set(values)
        wanted -= self.ledger.known(list(wanted))
        return {value for value in wanted if not self.file(value).exists()}

    def export(self, value: Digest, path: Path) -> None:
        """Write a blob to a user's file, in one step."""
        try:
            files.copy(self.location(value), path)
        except BlobMissing:
            files.write(path, self.read(value), durable=False)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free
