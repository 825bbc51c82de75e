"""The content-addressed store: put bytes in, get a digest; the digest gives the same bytes or nothing.

    .lorac/
      ledger.db                   see ledger.py
      cas/ab/cdef…                blobs of more than ROW_LIMIT bytes, named by their SHA-256
      scratch/<action key>/       what an unfinished action keeps for its next try (a training snapshot)
      tmp/                        files that are being written

Every read checks the digest (once per process for files). A blob that is missing or damaged raises `BlobMissing`; the
executor then makes it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorac.digest import Digest, digest, file_digest, short
from lorac.errors import StoreError
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

    def tidy(self) -> None:
        """Delete the temporary files of killed processes."""
        files.sweep(self.root / "tmp")

    # -- what an unfinished action keeps -----------------------------------------------------------------------------

    def scratch(self, key: Digest) -> Path:
        """A folder that an action may use, and finds again after a crash; `drop_scratch` removes it."""
        return self.root / "scratch" / self._scratch_name(key)

    @staticmethod
    def _scratch_name(key: Digest) -> str:
        return key.hex()[:32]

    def keep(self, key: Digest, name: str, write: Callable[[Path], None]) -> None:
        """Put a file into an action's scratch folder in one step; `write` fills it. Replaces the one of that name."""
        folder = self.scratch(key)
        temporary = files.temporary(folder)
        with files.removed_on_error(temporary), files.explained(folder):
            write(temporary)
            final = folder / f"{name}-{short(file_digest(temporary))}"
            files.adopt(temporary, final)
        for older in folder.glob(f"{name}-*"):
            if older != final:
                files.remove(older)

    def kept(self, key: Digest, name: str) -> Path | None:
        """The file that `keep` put there, if it is as it was written."""
        for path in sorted(self.scratch(key).glob(f"{name}-*")):
            if path.name.removeprefix(f"{name}-") == short(file_digest(path)):
                return path
            files.remove(path)
        return None

    def drop_scratch(self, keys: Iterable[Digest]) -> None:
        """Remove what these actions kept: they are finished."""
        names = {self._scratch_name(key) for key in keys}
        try:
            present = list((self.root / "scratch").iterdir())
        except FileNotFoundError:
            return
        for folder in present:
            if folder.name in names:
                files.remove_tree(folder)

    # -- writing: large blobs at once, small ones as rows of the caller's transaction --------------------------------

    def put(self, values: Iterable[bytes | Path]) -> list[Digest]:
        """Store byte strings, and finished temporary files (which are moved); inside `ledger.transaction()`."""
        digests: list[Digest] = []
        rows: list[tuple[Digest, bytes]] = []
        for value in values:
            size = value.stat().st_size if isinstance(value, Path) else len(value)
            if size > ROW_LIMIT:
                digests.append(self._put_file(value))
                continue
            data = value.read_bytes() if isinstance(value, Path) else value
            digests.append(digest(data))
            rows.append((digests[-1], data))
        self.ledger.put_blobs(rows)
        return digests

    def _put_file(self, value: bytes | Path) -> Digest:
        if isinstance(value, Path):
            name = file_digest(value)
            files.adopt_blob(value, self.file(name))
        else:
            name = digest(value)
            if self._intact(name):
                return name
            temporary = files.temporary(self.root / "tmp")
            with files.removed_on_error(temporary), files.explained(self.file(name)):
                temporary.write_bytes(value)
                files.adopt_blob(temporary, self.file(name))
        self._verified.add(name)
        return name

    def ingest(self, path: Path) -> tuple[Digest, bytes | None]:
        """Read a user's file once: small gives (digest, data), for the caller to put in a row; large is copied.

        The copy is hashed while it is written, so the digest is that of the bytes in the store even when the file
        changes meanwhile. It is not flushed: if a power cut damages it, the file is read again. Raises OSError when
        the file cannot be read, StoreError when the copy cannot be written.
        """
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= ROW_LIMIT:
                data = file.read()
                return digest(data), data
            temporary = files.temporary(self.root / "tmp")
            hasher = hashlib.sha256()
            with files.removed_on_error(temporary):
                with files.opened(temporary) as write:
                    while piece := file.read(1 << 20):
                        hasher.update(piece)
                        write(piece)
                name = hasher.digest()
                files.adopt_blob(temporary, self.file(name), durable=False)
        self._verified.add(name)
        return name, None

    # -- reading -----------------------------------------------------------------------------------------------------

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
                found[name] = self._read_file(name)
        return found

    def _read_file(self, value: Digest) -> bytes:
        with self._readable(value):
            data = self.file(value).read_bytes()
        if value not in self._verified and digest(data) != value:
            raise self._damaged(value)
        self._verified.add(value)
        return data

    def open(self, value: Digest) -> Path | bytes:
        """A large blob as a file that can be mapped, a small one as bytes. Raises BlobMissing."""
        return self.read(value) if self.ledger.known([value]) else self.location(value)

    def location(self, value: Digest) -> Path:
        """The file of a large blob, verified once per process, so that it can be mapped instead of read."""
        path = self.file(value)
        with self._readable(value):
            if value in self._verified:
                path.stat()
            elif file_digest(path) != value:
                raise self._damaged(value)
        self._verified.add(value)
        return path

    def missing(self, values: Iterable[Digest]) -> set[Digest]:
        """Those of the digests of which the store holds nothing; does not read the blobs."""
        wanted = set(values)
        wanted -= self.ledger.known(list(wanted))
        return {value for value in wanted if not self.file(value).exists()}

    def damaged(self, values: Iterable[Digest]) -> set[Digest]:
        """Those of the digests whose bytes are missing or wrong; reads all that was not verified before."""
        return {value for value in set(values) if not self.holds(value)}

    def holds(self, value: Digest) -> bool:
        """Whether the store has the right bytes."""
        try:
            self.open(value)
        except BlobMissing:
            return False
        return True

    def _intact(self, value: Digest) -> bool:
        """Whether a large blob is there already, so that it need not be written."""
        try:
            self.location(value)
        except BlobMissing:
            return False
        return True

    def _damaged(self, value: Digest) -> BlobMissing:
        """Take a damaged file away: what is there again later is good."""
        files.remove(self.file(value))
        self._verified.discard(value)
        return BlobMissing(value)

    @contextmanager
    def _readable(self, value: Digest) -> Iterator[None]:
        """A file that is not there, or that the disk cannot read, is a missing blob; a forbidden one is not."""
        try:
            yield
        except FileNotFoundError:
            self._verified.discard(value)
            raise BlobMissing(value) from None
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._damaged(value) from error
            path = self.file(value)
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from error
