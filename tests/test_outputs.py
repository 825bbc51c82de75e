"""The files a user gets: all of a build or none of it, written only when they must be, put back when they are lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lorac.digest import split
from lorac.engine import events
from lorac.engine.build import build, versions
from lorac.errors import InputError, StoreError
from lorac.graph.nodes import Graph, Input, Node, Output, Take
from lorac.store import files
from lorac.store.blobs import Store
from tests.fake_kinds import Bench, evaluate, take


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    made.world.folders = {"f": {f"{number}.png": b"picture %d" % number for number in range(4)}}
    yield made
    made.store.close()


def graph_of(*recipes: str, **params: Any) -> Graph:
    """Recipes that each give `NAME.a`, `NAME-2.a`, `NAME-4.a` … of a column and `one.b` of a single value."""
    graph = Graph()
    for recipe in recipes:
        source = graph.add(Node(f"{recipe}:source", "source", {}, hints={"path": "f"}))
        each = graph.add(Node(f"{recipe}:each", "each", params.get(recipe, {"long": 90000}), {"x": take(source)}))
        one = graph.add(Node(f"{recipe}:one", "one", {}, {"x": take(each, Take.WHOLE)}))
        graph.outputs += [
            Output(recipe, f"{recipe}.a", Input(each, "a", Take.LAST)),
            Output(recipe, f"{recipe}-{{n}}.a", Input(each, "a"), every=2),
            Output(recipe, "one.b", Input(one, "b")),
        ]
    return graph


def run(bench: Bench, out: Path, graph: Graph, **options: Any) -> list[events.FileWritten]:
    """One `lorac build`; the files that it wrote."""
    bench.events.clear()
    recipes = list(dict.fromkeys(output.recipe for output in graph.outputs))
    kinds: dict[str, Any] = dict(bench.kinds)
    build(graph, recipes, kinds, bench.scanners, bench.store, out, bench.events.append, jobs=2, **options)
    return [event for event in bench.events if isinstance(event, events.FileWritten) and event.changed]


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}
    for about in ("build.json", "build.html"):
        found.pop(about, None)
    return found


def expected(bench: Bench, graph: Graph, recipe: str) -> dict[str, bytes]:
    found = evaluate(graph, bench.world, bench.kinds)[0]
    each, one = (output.value.node for output in graph.outputs if output.recipe == recipe and "-" not in output.file)
    *others, last = found[each]["a"]
    return {
        f"{recipe}.a": last,
        **{f"{recipe}-{2 * (n + 1)}.a": data for n, data in enumerate(others)},
        "one.b": found[one]["b"][0],
    }


def reopen(bench: Bench) -> None:
    bench.store.close()
    bench.store = Store(bench.store.root)


def test_the_files_are_written_once_and_put_back_when_they_are_lost(bench: Bench, tmp_path: Path) -> None:
    graph = graph_of("r")
    assert len(run(bench, tmp_path, graph)) == 5
    want = expected(bench, graph, "r")
    assert contents(tmp_path / "r") == want
    assert run(bench, tmp_path, graph) == []
    (tmp_path / "r" / "r-2.a").unlink()
    (tmp_path / "r" / "one.b").write_bytes(b"edited")
    assert {Path(event.path).name for event in run(bench, tmp_path, graph)} == {"r-2.a", "one.b"}
    assert contents(tmp_path / "r") == want
    assert bench.events[-1] == events.BuildFinished(True, 0, 5, bench.events[-1].seconds)


def test_build_json_says_what_is_there(bench: Bench, tmp_path: Path) -> None:
    run(bench, tmp_path, graph_of("r"))
    facts = json.loads((tmp_path / "r" / "build.json").read_text("utf-8"))
    assert (facts["runs"], facts["hits"]) == (5, 0)
    files_there = {
        name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in contents(tmp_path / "r").items()
    }
    assert facts["outputs"] == files_there
    run(bench, tmp_path, graph_of("r"))
    facts = json.loads((tmp_path / "r" / "build.json").read_text("utf-8"))
    assert (facts["runs"], facts["hits"]) == (0, 5)
    assert facts["outputs"] == files_there


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_files_that_are_no_longer_made_go_unless_they_were_edited(bench: Bench, tmp_path: Path) -> None:
    run(bench, tmp_path, graph_of("r"))
    (tmp_path / "r" / "r-6.a").write_bytes(b"mine")
    (tmp_path / "r" / "notes.txt").write_bytes(b"mine")
    del bench.world.folders["f"]["0.png"], bench.world.folders["f"]["1.png"]
    graph = graph_of("r")
    run(bench, tmp_path, graph)
    assert contents(tmp_path / "r") == {**expected(bench, graph, "r"), "r-6.a": b"mine", "notes.txt": b"mine"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"outputs": []}',
        '{"outputs": {"../x": {"sha256": "%s"}}}',
        '{"outputs": {"old.a": {"sha256": "zz"}}}',
    ],
)
def test_a_build_json_that_somebody_edited_does_no_harm(bench: Bench, tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_bytes(b"not ours")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "old.a").write_bytes(b"nor is this")
    (tmp_path / "r" / "build.json").write_text(text.replace("%s", _sha256(b"not ours")), encoding="utf-8")
    graph = graph_of("r")
    run(bench, tmp_path, graph)
    assert contents(tmp_path / "r") == {**expected(bench, graph, "r"), "old.a": b"nor is this"}
    assert (tmp_path / "x").read_bytes() == b"not ours"


# -- lost blobs ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_blob_of_a_deleted_file_is_made_again(
    bench: Bench, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    graph = graph_of("r")
    run(bench, tmp_path, graph)
    for path in bench.store.root.glob("cas/*/*"):
        damage(path)
    shutil.rmtree(tmp_path / "r")
    reopen(bench)
    run(bench, tmp_path, graph)
    assert contents(tmp_path / "r") == expected(bench, graph, "r")


@pytest.mark.parametrize("query", ["DELETE FROM blob", "UPDATE blob SET data = CAST('x' || data AS BLOB)"])
def test_damaged_rows_of_columns_are_made_again(bench: Bench, tmp_path: Path, query: str) -> None:
    graph = graph_of("r")
    run(bench, tmp_path, graph)
    with bench.store.ledger.transaction():
        bench.store.ledger._db.execute(query)
    reopen(bench)
    run(bench, tmp_path, graph)
    assert contents(tmp_path / "r") == expected(bench, graph, "r")


def test_a_ledger_that_is_damaged_inside_is_replaced_in_the_same_build(bench: Bench, tmp_path: Path) -> None:
    graph = graph_of("r")
    run(bench, tmp_path, graph)
    path = bench.store.root / "ledger.db"
    bench.store.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    bench.store = Store(bench.store.root)
    run(bench, tmp_path, graph)
    assert contents(tmp_path / "r") == expected(bench, graph, "r")
    assert any(isinstance(event, events.Warned) and "damaged" in event.text for event in bench.events)
    assert run(bench, tmp_path, graph) == []
    assert bench.events[-1].ran == 0


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_a_disk_that_fills_up_among_the_files_changes_none_of_them(bench: Bench, tmp_path: Path, number: int) -> None:
    run(bench, tmp_path, graph_of("r"))
    before = contents(tmp_path / "r")
    facts = (tmp_path / "r" / "build.json").read_bytes()
    bench.world.folders["f"] = {name: b"new" + data for name, data in bench.world.folders["f"].items()}
    left, stage = number, files.stage

    def full(source: Path | bytes, path: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise files.refusal(path, OSError(errno.ENOSPC, "full"))
        return stage(source, path)

    graph = graph_of("r")
    with patch.object(files, "stage", full), pytest.raises(StoreError, match="free some space") as error:
        run(bench, tmp_path, graph)
    assert error.value.exit_code == 2
    assert bench.events[-1].ok is False
    assert contents(tmp_path / "r") == before
    assert (tmp_path / "r" / "build.json").read_bytes() == facts
    run(bench, tmp_path, graph)
    assert contents(tmp_path / "r") == expected(bench, graph, "r")
    assert bench.events[-1].ran == 0


def test_a_failed_build_changes_no_output(bench: Bench, tmp_path: Path) -> None:
    run(bench, tmp_path, graph_of("r"))
    before = contents(tmp_path / "r")
    bench.world.folders["f"] |= {"0.png": b"new", "1.png": b"!"}
    with pytest.raises(InputError):
        run(bench, tmp_path, graph_of("r", r={"strict": True}))
    assert contents(tmp_path / "r") == before


def test_with_k_the_recipes_that_can_be_built_are_written(bench: Bench, tmp_path: Path) -> None:
    bench.world.folders["f"]["1.png"] = b"!"
    graph = graph_of("bad", "good", bad={"strict": True})
    with pytest.raises(InputError):
        run(bench, tmp_path, graph)
    assert contents(tmp_path / "good") == contents(tmp_path / "bad") == {}
    with pytest.raises(InputError) as error:
        run(bench, tmp_path, graph, keep_going=True)
    assert [problem.where for problem in error.value.problems] == ["1.png"]
    assert contents(tmp_path / "good") == expected(bench, graph_of("good"), "good")
    assert contents(tmp_path / "bad") == {}


def test_a_killed_build_leaves_no_litter_for_ever(bench: Bench, tmp_path: Path) -> None:
    graph = graph_of("r")
    run(bench, tmp_path, graph)
    old = time.time() - 2 * files.ABANDONED_SECONDS
    litter = [files.temporary(folder) for folder in (tmp_path / "r", bench.store.root / "tmp")]
    for path in litter:
        path.write_bytes(b"")
        os.utime(path, (old, old))
    run(bench, tmp_path, graph)
    assert not any(path.exists() for path in litter)


class PowerCut(BaseException):
    """Nothing runs after it."""


class Machine:
    """A computer whose power fails at its `left`-th flush or rename, and which wrote to the disk what it had to."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.flushed: set[int] = set()
        self._fsync, self._replace = os.fsync, os.replace

    def fsync(self, handle: int) -> None:
        self._step()
        self._fsync(handle)
        self.flushed.add(os.fstat(handle).st_ino)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        self._replace(source, target)
        self.flushed.discard(target.parent.stat().st_ino)

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerCut

    def restart(self, folder: Path) -> None:
        """Renames are gone if their folder was not flushed after them, contents if their file was not flushed."""
        for path in folder.glob("*/*"):
            if path.parent.stat().st_ino not in self.flushed and os.name != "nt":
                path.unlink()
            elif path.stat().st_ino not in self.flushed:
                path.write_bytes(b"")


@pytest.mark.parametrize("first", range(4))
def test_a_power_cut_at_any_flush_or_rename_costs_only_what_was_not_recorded(tmp_path: Path, first: int) -> None:
    """The method of SQLite's test6.c: what the ledger promises is there; its loss would be noticed, but cost hours."""
    for number in range(first, 60, 4):
        bench = Bench(tmp_path / f"store {number}")
        bench.world.folders = {"f": {f"{index}.png": b"picture %d" % index for index in range(3)}}
        graph, out, machine = graph_of("r"), tmp_path / f"out {number}", Machine(number)
        with patch.object(os, "fsync", machine.fsync), patch.object(os, "replace", machine.replace):
            try:
                run(bench, out, graph)
            except PowerCut:
                pass
        reopen(bench)
        machine.restart(bench.store.root / "cas")
        for (promised,) in bench.store.ledger._db.execute("SELECT outputs FROM action").fetchall():
            assert bench.store.damaged(split(promised)) == set()
        run(bench, out, graph)
        assert contents(out / "r") == expected(bench, graph, "r")
        bench.store.close()
        if machine.left > 0:
            break
    else:
        pytest.fail("it never ends")


def test_a_second_build_waits_and_then_finds_everything(bench: Bench, tmp_path: Path) -> None:
    """As two processes would; a kernel lock on another open file of the same process excludes just as well."""
    other = Bench(tmp_path / "store")
    other.world = bench.world
    waiting = threading.Event()

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Warned) and "waiting" in event.text:
            waiting.set()
        other.events.append(event)

    def second() -> None:
        kinds: dict[str, Any] = dict(other.kinds)
        build(graph_of("r"), ["r"], kinds, other.scanners, other.store, tmp_path, listen, jobs=2)

    thread = threading.Thread(target=second)

    def start(work: Any, item: Any) -> None:
        thread.start()
        assert waiting.wait(10)

    bench.kinds["one"].before = start
    run(bench, tmp_path, graph_of("r"))
    thread.join()
    other.store.close()
    assert bench.ran() == {"each": 4, "one": 1}
    assert other.ran() == {}
    assert other.events[-1].ran == 0


def test_versions_are_told_of_whatever_makes_bytes() -> None:
    """The tagger's runtime and the optimisers of pyproject.toml, as far as they are installed."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    optimisers = [re.split("[<>=]", wanted)[0] for wanted in project["optional-dependencies"]["optimizers"]]
    told = versions()
    for package in ("torch", "onnxruntime", *optimisers):
        try:
            expected = metadata.version(package)
        except metadata.PackageNotFoundError:
            assert package not in told
        else:
            assert told[package] == expected
