"""The database: all or nothing, one writer after the other, and a damaged file costs work but never a build."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lorac.digest import Manifest, digest
from lorac.errors import StoreError
from lorac.store import ledger as ledger_module
from lorac.store.ledger import FORMAT, Last, Ledger, LedgerDamaged

KEYS = [digest(bytes([number])) for number in range(256)]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


def fill(ledger: Ledger) -> None:
    """A few pages of everything."""
    manifest = Manifest([("kind", '"image"'), ("params.name", '"絵"')])
    with ledger.transaction():
        ledger.put_blobs((key, key * 20) for key in KEYS)
        ledger.put_stats(b"folder", ((key, key[:8], key) for key in KEYS[:50]))
        for key in KEYS:
            ledger.record(key, "image", key + KEYS[0], 0.5, {"steps": 2.0})
        ledger.put_last("r:image", Last(3, 1, 2, manifest, None))


def use(ledger: Ledger) -> None:
    """Everything that a build asks of it. What it answers is right or nothing."""
    assert all(ledger.action(key) is None or isinstance(ledger.action(key), ledger_module.Action) for key in KEYS)
    assert all(isinstance(outputs, bytes) for outputs in ledger.outputs(KEYS).values())
    assert all(isinstance(data, bytes) for data in ledger.blobs(KEYS).values())
    assert all(isinstance(value, bytes) for _, value in ledger.stats(b"folder").values())
    ledger.last("r:image")
    ledger.new_build()
    fill(ledger)
    with ledger.transaction():
        ledger.forget(KEYS[:3], KEYS[5:6])


def test_what_is_recorded_is_found(ledger: Ledger) -> None:
    fill(ledger)
    action = ledger.action(KEYS[7])
    assert action is not None
    assert action.digests() == [KEYS[7], KEYS[0]]
    assert (action.seconds, action.measures) == (0.5, {"steps": 2.0})
    assert ledger.action(digest(b"unknown")) is None
    assert ledger.outputs([*KEYS, digest(b"unknown")]) == {key: key + KEYS[0] for key in KEYS}
    assert ledger.known([*KEYS, digest(b"unknown")]) == set(KEYS)
    assert ledger.stats(b"folder") == {key: (key[:8], key) for key in KEYS[:50]}
    last = ledger.last("r:image")
    assert last is not None
    assert (last.build, last.ran, last.total, last.previous) == (3, 1, 2, None)
    assert last.manifest.fields == [("kind", '"image"'), ("params.name", '"絵"')]
    assert [ledger.new_build(), ledger.new_build()] == [1, 2]


def test_forgetting_drops_the_key_and_all_that_promises_the_bytes(ledger: Ledger) -> None:
    fill(ledger)
    with ledger.transaction():
        ledger.forget([KEYS[1]], [KEYS[2]])
    assert KEYS[:50] and set(KEYS) - set(ledger.outputs(KEYS)) == {KEYS[1], KEYS[2]}
    assert set(KEYS[:50]) - set(ledger.stats(b"folder")) == {KEYS[2]}
    with ledger.transaction():
        ledger.forget([], [KEYS[0]])
    assert ledger.outputs(KEYS) == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_works(
    ledger: Ledger, error: type[BaseException]
) -> None:
    with pytest.raises(error), ledger.transaction():
        ledger.put_blobs([(KEYS[0], b"x")])
        raise error
    assert ledger.known(KEYS) == set()
    fill(ledger)
    assert ledger.known(KEYS) == set(KEYS)


def test_others_see_a_transaction_when_it_is_complete(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "ledger.db")
    with ledger.transaction():
        ledger.put_blobs([(KEYS[0], b"x")])
        assert other.known(KEYS) == set()
    assert other.known(KEYS) == {KEYS[0]}
    other.close()


def test_opening_a_ledger_that_is_there_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    with ledger.transaction():  # while another process writes
        Ledger(tmp_path / "ledger.db").close()


def test_a_ledger_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    """SQLite answers "database is locked" at once, whatever the timeout, while another connection turns on WAL."""
    prepare, left = Ledger._prepare, 3

    def busy(database: sqlite3.Connection) -> int:
        nonlocal left
        left -= 1
        if left >= 0:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY
            raise error
        return prepare(database)

    with patch.object(Ledger, "_prepare", staticmethod(busy)):
        made = Ledger(tmp_path / "ledger.db")
    use(made)
    made.close()
    assert list(tmp_path.glob("ledger-*")) == []


def test_many_may_make_the_ledger_at_once(tmp_path: Path) -> None:
    for attempt in range(4):
        failures: list[BaseException] = []
        numbers: list[int] = []
        barrier = threading.Barrier(8)

        def start(path: Path, barrier: Any = barrier, numbers: Any = numbers, failures: Any = failures) -> None:
            barrier.wait()
            try:
                made = Ledger(path)
                numbers.append(made.new_build())
                made.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=start, args=(tmp_path / str(attempt) / "ledger.db",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert sorted(numbers) == list(range(1, 9))


# -- damage ----------------------------------------------------------------------------------------------------------


def other_format(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
        database.execute("CREATE TABLE action (something_else)")
    database.close()


@pytest.mark.parametrize(
    ("make", "aside"),
    [
        (lambda path: path.write_bytes(b""), None),
        (lambda path: path.write_bytes(b"not a database at all" * 500), "damaged"),
        (lambda path: path.write_bytes(bytes(8192)), "damaged"),
        (other_format, f"format-{FORMAT + 1}"),
    ],
)
def test_a_file_that_is_no_ledger_is_set_aside(tmp_path: Path, make: Any, aside: str | None) -> None:
    path = tmp_path / "ledger.db"
    make(path)
    before = path.read_bytes()
    path.with_name("ledger.db-wal").write_bytes(b"torn")
    made = Ledger(path)
    use(made)
    made.close()
    kept = list(tmp_path.glob("ledger-*.db"))
    assert [file.name.split("-", 1)[1].rpartition("-")[0] for file in kept] == ([aside] if aside else [])
    assert [file.read_bytes() for file in kept] == ([before] if aside else [])


def test_no_damage_to_the_file_stops_the_second_build(tmp_path: Path) -> None:
    """Cut off anywhere, zeroed or flipped anywhere: the ledger works, or says so, and works when it is opened again."""
    path = tmp_path / "ledger.db"
    made = Ledger(path)
    fill(made)
    made.close()
    whole = path.read_bytes()
    chance = random.Random(1)
    damaged = 0
    for number in range(48):
        place = chance.randrange(len(whole))
        data = [
            lambda: whole[:place],  # noqa: B023
            lambda: whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :],  # noqa: B023
            lambda: whole[: place // 4096 * 4096] + bytes(4096) + whole[place // 4096 * 4096 + 4096 :],  # noqa: B023
            lambda: whole[:place] + chance.randbytes(64) + whole[place + 64 :],  # noqa: B023
        ][number % 4]()
        path.write_bytes(data)
        with patch.object(ledger_module, "_BUSY_SECONDS", 0.2):
            for _ in range(2):
                opened = Ledger(path)
                try:
                    use(opened)
                except StoreError as error:
                    assert isinstance(error, LedgerDamaged)
                    damaged += 1
                    opened.reopen()
                    use(opened)
                opened.close()
            for file in tmp_path.glob("ledger*"):
                file.unlink()
    assert damaged > 5


def test_a_damaged_ledger_is_set_aside_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    made = Ledger(path)
    fill(made)
    made.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    made = Ledger(path)
    with pytest.raises(LedgerDamaged, match="build again"):
        use(made)
    made.close()
    assert not path.exists()
    assert len(list(tmp_path.glob("ledger-damaged-*.db"))) == 1


@pytest.mark.parametrize("value", ["{", "[]", b"\xff", None, 3])
def test_a_damaged_row_is_an_unknown_action(ledger: Ledger, value: Any) -> None:
    fill(ledger)
    with ledger.transaction():
        ledger._db.execute("UPDATE OR IGNORE action SET measures = ?", (value if value is not None else "null",))
        ledger._db.execute("UPDATE OR IGNORE last SET manifest = ?", (value if value is not None else "null",))
    assert ledger.action(KEYS[0]) is None or ledger.action(KEYS[0]).measures == {}  # type: ignore[union-attr]
    last = ledger.last("r:image")
    assert last is None or last.manifest.fields == []


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_explained_and_nothing_of_the_transaction_stays(ledger: Ledger) -> None:
    fill(ledger)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 3}")
    new = [digest(b"new%d" % number) for number in range(50)]
    with pytest.raises(StoreError, match="full; free some space") as error, ledger.transaction():
        ledger.put_blobs((key, bytes(4000)) for key in new)
    assert error.value.exit_code == 2
    assert ledger.known(new) == set()
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    with ledger.transaction():
        ledger.put_blobs((key, bytes(4000)) for key in new)
    assert ledger.known(new) == set(new)


def test_a_writer_that_never_ends_is_explained(tmp_path: Path) -> None:
    with patch.object(ledger_module, "_BUSY_SECONDS", 0.1):
        one, other = Ledger(tmp_path / "ledger.db"), Ledger(tmp_path / "ledger.db")
        with one.transaction(), pytest.raises(StoreError, match="another program"), other.transaction():
            pass
        one.close()
        other.close()


def test_our_own_mistakes_are_not_blamed_on_the_disk(ledger: Ledger) -> None:
    with pytest.raises(sqlite3.ProgrammingError), ledger.transaction():
        ledger.put_blobs([(KEYS[0],)])  # type: ignore[list-item]
