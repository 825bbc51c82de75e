"""Blobs and the files they lie in: right bytes or none, and never half of anything."""

from __future__ import annotations

import errno
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lorac.digest import Digest, digest
from lorac.errors import StoreError
from lorac.store import files
from lorac.store.blobs import ROW_LIMIT, BlobMissing, Store
from tests.fake_kinds import writing

SMALL, LARGE = b"small", b"large" * ROW_LIMIT


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    yield made
    made.close()


def put(store: Store, *values: bytes | Path) -> list[Digest]:
    with store.ledger.transaction():
        return store.put(values)


def again(store: Store) -> Store:
    """What another process sees: a store that has verified nothing yet."""
    store.close()
    return Store(store.root)


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "ledger.db" not in path.name)


def assert_whole(store: Store) -> None:
    """Every blob file holds what its name says, and nothing is left of unfinished ones."""
    for path in all_files(store.root):
        assert path.relative_to(store.root / "cas").as_posix().replace("/", "") == digest(path.read_bytes()).hex()


# -- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, ROW_LIMIT, ROW_LIMIT + 1, 3 * 2**20 + 5])
def test_what_is_put_is_read_back_from_a_row_or_a_file(store: Store, size: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (name,) = put(store, data)
    assert name == digest(data)
    assert store.file(name).exists() == (size > ROW_LIMIT)
    assert store.ledger.known([name]) == (set() if size > ROW_LIMIT else {name})
    store = again(store)
    assert store.read(name) == data
    opened = store.open(name)
    assert (opened.read_bytes() if isinstance(opened, Path) else opened) == data
    assert store.missing([name, digest(b"else")]) == {digest(b"else")}
    store.close()


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_finished_file_is_taken_over(store: Store, data: bytes) -> None:
    path = store.scratch(digest(b"key")) / "made"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (name,) = put(store, path)
    assert store.read(name) == data == again(store).read(name)
    if data is LARGE:
        assert not path.exists()


def test_nothing_that_is_there_is_written_again(store: Store) -> None:
    (name,) = put(store, LARGE)
    written = store.file(name).stat()
    put(store, LARGE)
    assert store.file(name).stat().st_ino == written.st_ino
    assert store.file(name).stat().st_mtime_ns == written.st_mtime_ns


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize("change", [flip, lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
@pytest.mark.parametrize("verb", ["read", "location", "open"])
def test_a_damaged_file_is_missing_removed_and_written_again(
    store: Store, change: Callable[[bytes], bytes], verb: str
) -> None:
    (name,) = put(store, LARGE)
    store.file(name).write_bytes(change(LARGE))
    store = again(store)
    with pytest.raises(BlobMissing) as missing:
        getattr(store, verb)(name)
    assert missing.value.digest == name
    assert not store.file(name).exists()
    put(store, LARGE)
    assert store.read(name) == LARGE
    store.close()


def test_putting_the_bytes_again_repairs_a_damaged_file(store: Store) -> None:
    (name,) = put(store, LARGE)
    store.file(name).write_bytes(flip(LARGE))
    store = again(store)
    put(store, LARGE)
    assert again(store).read(name) == LARGE


def test_a_damaged_row_is_missing_and_dropped(store: Store) -> None:
    (name,) = put(store, SMALL)
    change(store, "UPDATE blob SET data = ?", b"smalL")
    with pytest.raises(BlobMissing):
        store.read(name)
    assert store.missing([name]) == {name}


@pytest.mark.parametrize("value", [None, 7, "text"])
def test_a_row_of_another_type_is_missing(store: Store, value: Any) -> None:
    (name,) = put(store, SMALL)
    with sqlite3.connect(store.root / "ledger.db") as database:
        database.execute("PRAGMA writable_schema = 1")
        database.execute("UPDATE sqlite_master SET sql = replace(sql, 'data BLOB NOT NULL', 'data BLOB')")
    database.close()
    store = again(store)
    change(store, "UPDATE blob SET data = ?", value)
    with pytest.raises(BlobMissing):
        store.read(name)
    store.close()


def test_damaged_names_what_missing_cannot_see(store: Store) -> None:
    small, large, good, gone = put(store, SMALL, LARGE, b"good", b"gone")
    store.file(large).write_bytes(flip(LARGE))
    change(store, "UPDATE blob SET data = ? WHERE data = CAST('small' AS BLOB)", b"smalL")
    change(store, "DELETE FROM blob WHERE data = ?", b"gone")
    store = again(store)
    assert store.missing([small, large, good, gone]) == {gone}
    assert store.damaged([small, large, good, gone]) == {small, large, gone}
    store.close()


@pytest.mark.parametrize("verb", ["read", "location", "open"])
def test_a_file_that_vanishes_after_it_was_verified_is_missing(store: Store, verb: str) -> None:
    (name,) = put(store, LARGE)
    store.read(name)
    store.file(name).unlink()
    with pytest.raises(BlobMissing):
        getattr(store, verb)(name)


def test_a_sector_that_cannot_be_read_is_damage_and_a_forbidden_file_is_not(store: Store) -> None:
    (name,) = put(store, LARGE)
    with failing("rb", errno.EACCES), pytest.raises(StoreError, match="permissions"):
        again(store).read(name)
    assert store.file(name).exists()
    with failing("rb", errno.EIO), pytest.raises(BlobMissing):
        again(store).read(name)
    assert not store.file(name).exists()


def change(store: Store, query: str, value: Any) -> None:
    with store.ledger.transaction():
        store.ledger._db.execute(query, (value,))


# -- the user's files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_ingesting_copies_and_hashes(store: Store, tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "絵 1.png"
    source.write_bytes(data)
    name, row = store.ingest(source)
    assert name == digest(data)
    assert row == (data if data is SMALL else None)
    assert source.read_bytes() == data
    if data is LARGE:
        assert again(store).read(name) == data


def test_the_digest_is_that_of_the_copy_when_the_file_changes_meanwhile(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "growing"
    source.write_bytes(b"a" * 2**21)
    opened = files.opened

    @contextmanager
    def interrupting(path: Path) -> Iterator[Callable[[bytes], object]]:
        with opened(path) as write:
            yield lambda piece: (write(piece), source.write_bytes(b"b" * 2**21))

    with patch.object(files, "opened", interrupting):
        name, _ = store.ingest(source)
    assert again(store).read(name) == b"a" * 2**20 + b"b" * 2**20
    assert_whole(store)


def test_a_source_that_cannot_be_read_is_not_the_stores_fault(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory|denied"):
        store.ingest(tmp_path / "folder")
    source = tmp_path / "bad sector"
    source.write_bytes(LARGE)
    with failing("rb", errno.EIO, on_read=True), pytest.raises(OSError, match="Input/output|I/O"):
        store.ingest(source)
    assert_whole(store)


# -- what actions keep -----------------------------------------------------------------------------------------------


def test_what_an_action_keeps_is_found_by_it_alone_and_replaced(store: Store) -> None:
    key, other = digest(b"key"), digest(b"other")
    assert store.kept(key, "snapshot") is None
    for data in (b"first", b"second"):
        store.keep(key, "snapshot", writing(data))
        kept = again(store).kept(key, "snapshot")
        assert kept is not None
        assert kept.read_bytes() == data
    assert len(all_files(store.root)) == 1
    assert store.kept(other, "snapshot") is None
    assert store.kept(key, "snap") is None
    store.drop_scratch([other, key])
    assert store.kept(key, "snapshot") is None
    assert all_files(store.root) == []


def test_a_kept_file_that_changed_is_not_used(store: Store) -> None:
    key = digest(b"key")
    store.keep(key, "snapshot", writing(b"state"))
    (path,) = all_files(store.root)
    path.write_bytes(b"statE")
    assert store.kept(key, "snapshot") is None
    assert not path.exists()


def test_a_failed_keep_leaves_the_one_before(store: Store) -> None:
    key = digest(b"key")
    store.keep(key, "snapshot", writing(b"good"))

    def half(path: Path) -> None:
        path.write_bytes(b"ba")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.keep(key, "snapshot", half)
    assert [path.read_bytes() for path in all_files(store.root)] == [b"good"]


def test_temporary_files_of_killed_processes_are_swept(store: Store) -> None:
    folder = store.root / "tmp"
    old, young = files.temporary(folder), files.temporary(folder)
    mine = folder / "notes.tmp"
    for path in (old, young, mine):
        path.write_bytes(b"")
    for path in (old, mine):
        os.utime(path, (time.time() - 2 * files.ABANDONED_SECONDS,) * 2)
    store.tidy()
    assert all_files(store.root) == sorted([mine, young])


# -- a full disk, and other refusals ---------------------------------------------------------------------------------


@contextmanager
def failing(how: str, code: int, *, on_read: bool = False) -> Iterator[None]:
    """Every file opened in the mode `how` takes or gives half of what it should, then fails with `code`."""
    real = pathlib.Path.open

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real(self, mode, *args, **kwargs)
        if how != mode:
            return file
        if how == "rb" and not on_read:
            file.close()
            raise OSError(code, os.strerror(code))
        return Failing(file, code)

    with patch.object(pathlib.Path, "open", open_):
        yield


class Failing:
    """A file on a disk that gives up."""

    def __init__(self, file: Any, code: int) -> None:
        self.file, self.code = file, code

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(self.code, os.strerror(self.code))

    def read(self, size: int = -1) -> bytes:
        raise OSError(self.code, os.strerror(self.code))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def verbs(store: Store, tmp_path: Path) -> dict[str, Callable[[], object]]:
    """Everything that writes files."""
    (tmp_path / "source").write_bytes(LARGE)
    return {
        "put": lambda: put(store, LARGE),
        "ingest": lambda: store.ingest(tmp_path / "source"),
        "keep": lambda: store.keep(digest(b"key"), "snapshot", writing(LARGE)),
        "write": lambda: files.write(tmp_path / "build.json", LARGE),
        "stage": lambda: files.stage(LARGE, tmp_path / "output"),
    }


@pytest.mark.parametrize("verb", ["put", "ingest", "keep", "write", "stage"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained_and_leaves_nothing_half_written(
    store: Store, tmp_path: Path, verb: str, code: int
) -> None:
    action = verbs(store, tmp_path)[verb]
    before = all_files(tmp_path)
    with failing("wb", code), pytest.raises(StoreError, match="no space left.*free some space") as error:
        action()
    assert error.value.exit_code == 2
    assert all_files(tmp_path) == before
    action()
    assert all_files(tmp_path) != before


@pytest.mark.parametrize("verb", ["put", "ingest", "keep", "write"])
@pytest.mark.parametrize("call", ["replace", "fsync", "mkdir"])
def test_every_step_of_writing_may_fail_or_be_the_last(store: Store, tmp_path: Path, verb: str, call: str) -> None:
    """At the k-th rename, flush or new folder, for every k: the disk is full, or the user presses Ctrl-C."""
    action = verbs(store, tmp_path)[verb]
    before = all_files(tmp_path)
    target: Any = pathlib.Path if call == "mkdir" else os
    real = getattr(target, call)
    for error in (OSError(errno.ENOSPC, "full"), KeyboardInterrupt()):
        for number in range(10):
            left = number

            def sometimes(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise error  # noqa: B023
                return real(*args, **kwargs)

            with patch.object(target, call, sometimes):
                try:
                    action()
                except (StoreError, KeyboardInterrupt) as raised:
                    assert isinstance(raised, KeyboardInterrupt) == isinstance(error, KeyboardInterrupt)
                else:
                    break
            written = {path.read_bytes() for path in all_files(tmp_path) if path not in before}
            assert written <= {LARGE}
        else:
            pytest.fail("it never ends")


def test_a_program_that_holds_a_file_open_on_windows(store: Store, tmp_path: Path) -> None:
    """`os.replace` refuses there. A blob that exists is the same blob; an output that exists is an old one."""
    (name,) = put(store, LARGE)
    (tmp_path / "output").write_bytes(b"old")
    (tmp_path / "source").write_bytes(LARGE)
    with patch.object(os, "replace", side_effect=PermissionError(errno.EACCES, "in use")):
        assert store.ingest(tmp_path / "source") == (name, None)
        with pytest.raises(StoreError, match="close programs that have it open"):
            files.write(tmp_path / "output", LARGE)
        with pytest.raises(StoreError):
            put(store, LARGE + b"new")
    assert (tmp_path / "output").read_bytes() == b"old"
    (tmp_path / "output").unlink()
    (tmp_path / "source").unlink()
    assert_whole(store)


def test_a_store_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file") as error:
        Store(tmp_path / "file" / "store")
    assert error.value.exit_code == 2


def test_many_rows_are_read_at_once(store: Store) -> None:
    """1200 small blobs are read with three queries, not with 1200."""
    names = put(store, *(b"%d" % number for number in range(1200)))
    queries: list[str] = []
    store.ledger._db.set_trace_callback(queries.append)
    assert set(store.read_many(names).values()) == {b"%d" % number for number in range(1200)}
    assert len(queries) == 3
