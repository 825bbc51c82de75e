"""What is known of files: never a stale digest, and never a file read twice without need."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lorac.digest import digest
from lorac.errors import InputError, StoreError
from lorac.store import files, statcache
from lorac.store.blobs import Store
from lorac.store.statcache import TOO_YOUNG_NS, TRIES, file_digests, signature


class Clock:
    """Time as the stat cache sees it, that much later than it is; each reading of the clock may take some, too."""

    def __init__(self) -> None:
        self.later = 3 * TOO_YOUNG_NS
        self.each = 0

    def time_ns(self) -> int:
        self.later += self.each
        return time.time_ns() + self.later


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    with patch.object(statcache, "time", made):
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    folder = tmp_path / "日本語 フォルダ"
    folder.mkdir()
    (folder / "絵 01.png").write_bytes(b"first")
    return folder / "絵 01.png"


def look(store: Store, *paths: Path) -> tuple[list[bytes], int]:
    """(digests, how many files were read)."""
    with patch.object(Store, "ingest", autospec=True, side_effect=Store.ingest) as ingest:
        found = file_digests(store, [(path, path.stat()) for path in paths])
    return found, ingest.call_count


def test_a_known_file_is_not_read_again_and_its_bytes_are_in_the_store(
    store: Store, picture: Path, clock: Clock
) -> None:
    assert look(store, picture) == ([digest(b"first")], 1)
    assert look(store, picture) == ([digest(b"first")], 0)
    assert store.read(digest(b"first")) == b"first"


def test_folder_listings_and_stat_give_the_same_signature(picture: Path) -> None:
    """On Windows a listing knows neither device nor inode; if they counted, no file would ever be known."""
    with os.scandir(picture.parent) as entries:
        assert [signature(entry.stat()) for entry in entries] == [signature(picture.stat())]


def test_a_young_file_is_read_until_it_has_settled(store: Store, picture: Path, clock: Clock) -> None:
    clock.later = 0
    assert look(store, picture)[1] == 1
    assert look(store, picture)[1] == 1
    clock.later = TOO_YOUNG_NS + 1
    assert look(store, picture)[1] == 1
    assert look(store, picture)[1] == 0


def test_reading_slowly_does_not_make_a_file_old(store: Store, picture: Path, clock: Clock) -> None:
    """It may have been edited within its clock tick while it was read; only its age when reading began counts."""
    clock.later, clock.each = 0, TOO_YOUNG_NS // 2 + 1
    assert look(store, picture)[1] == 1
    assert look(store, picture)[1] == 1


def test_a_file_from_the_future_is_read_every_time(store: Store, picture: Path, clock: Clock) -> None:
    os.utime(picture, (time.time() + 10**6,) * 2)
    assert look(store, picture)[1] == 1
    assert look(store, picture)[1] == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of change that programs cannot set")
def test_an_edit_of_the_same_size_with_its_old_mtime_is_seen(store: Store, picture: Path, clock: Clock) -> None:
    before = picture.stat()
    assert look(store, picture) == ([digest(b"first")], 1)
    picture.write_bytes(b"FIRST")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert picture.stat().st_mtime_ns == before.st_mtime_ns
    assert look(store, picture) == ([digest(b"FIRST")], 1)


def test_another_file_in_its_place_is_seen(store: Store, picture: Path, clock: Clock) -> None:
    look(store, picture)
    other = picture.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(picture.stat().st_atime_ns, picture.stat().st_mtime_ns))
    other.replace(picture)
    assert look(store, picture) == ([digest(b"other")], 1)


@pytest.mark.parametrize("field", range(6))
def test_every_field_of_the_signature_counts(store: Store, picture: Path, clock: Clock, field: int) -> None:
    """Device, inode, mode, mtime, ctime, size: another value, larger or smaller, means that the file is read."""
    if os.name == "nt" and field < 2:
        pytest.skip("not known there")
    real = picture.stat()
    look(store, picture)
    names = ["st_dev", "st_ino", "st_mode", "st_mtime_ns", "st_ctime_ns", "st_size"]
    for change in (1, -1):
        status: Any = type("Status", (), {name: getattr(real, name) for name in names})()
        setattr(status, names[field], getattr(real, names[field]) + change)
        with patch.object(Store, "ingest", autospec=True, side_effect=Store.ingest) as ingest:
            file_digests(store, [(picture, status)])
        assert ingest.call_count >= 1


def test_a_file_that_changes_while_it_is_read_is_read_again(store: Store, picture: Path, clock: Clock) -> None:
    contents = iter([b"second", b"third one"])
    real = Store.ingest

    def ingest(self: Store, path: Path) -> Any:
        found = real(self, path)
        changed = next(contents, None)
        if changed is not None:
            path.write_bytes(changed)
        return found

    with patch.object(Store, "ingest", ingest):
        assert file_digests(store, [(picture, picture.stat())]) == [digest(b"third one")]
    assert look(store, picture) == ([digest(b"third one")], 0)


def test_a_file_that_never_stops_changing_is_taken_and_not_remembered(
    store: Store, picture: Path, clock: Clock
) -> None:
    real, sizes = Store.ingest, []

    def ingest(self: Store, path: Path) -> Any:
        found = real(self, path)
        sizes.append(len(found[1] or b""))
        path.write_bytes(path.read_bytes() + b"x")
        return found

    with patch.object(Store, "ingest", ingest):
        (value,) = file_digests(store, [(picture, picture.stat())])
    assert len(sizes) == TRIES
    assert store.read(value) == b"first" + b"x" * (TRIES - 1)
    assert look(store, picture)[1] == 1


def test_a_large_file_is_copied_and_one_that_is_only_hashed_is_not(store: Store, picture: Path, clock: Clock) -> None:
    picture.write_bytes(b"large" * 2**16)
    assert file_digests(store, [(picture, picture.stat())], ingest=False) == [digest(b"large" * 2**16)]
    assert store.missing([digest(b"large" * 2**16)])
    with store.ledger.transaction():
        store.ledger.forget((), [digest(b"large" * 2**16)])
    assert look(store, picture)[1] == 1
    assert store.read(digest(b"large" * 2**16)) == b"large" * 2**16


def test_all_unreadable_files_are_named_and_nothing_is_remembered(store: Store, picture: Path, clock: Clock) -> None:
    gone = [picture.with_name(name) for name in ("a.png", "b.png")]
    status = picture.stat()
    with pytest.raises(InputError) as error:
        file_digests(store, [(picture, status), *((path, status) for path in gone)])
    assert [problem.where for problem in error.value.problems] == [str(path) for path in gone]
    assert look(store, picture)[1] == 1


def test_a_full_disk_is_not_a_problem_of_the_picture(store: Store, picture: Path, clock: Clock) -> None:
    picture.write_bytes(b"large" * 2**16)
    with (
        patch.object(files, "opened", side_effect=StoreError("no space left")),
        pytest.raises(StoreError, match="no space"),
    ):
        look(store, picture)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_names_that_are_not_unicode_are_names(store: Store, picture: Path, clock: Clock) -> None:
    odd = Path(os.fsdecode(os.fsencode(picture.parent) + b"/\xe9\xff.png"))
    odd.write_bytes(b"odd")
    assert look(store, odd, picture) == ([digest(b"odd"), digest(b"first")], 2)
    assert look(store, odd, picture)[1] == 0
