"""Random graphs, random histories: whatever happened before, a build gives what a clean evaluation gives.

The method is Shake's `Test/Random.hs`: random graphs, edits, -j, exceptions in actions and damage to the store,
compared with a model that knows no keys. The second property is "no needless work": an action that was ever finished
does not run again, unless its bytes were destroyed.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from lorac.digest import split
from lorac.engine.executor import Executor
from lorac.engine.protocol import Item, Work
from lorac.errors import InputError
from lorac.graph.nodes import Graph, Input, Node, Take
from lorac.store import blobs
from tests.fake_kinds import OUTPUTS, Bench, contents_of, evaluate

NAMES = ["a", "b", "c", "d", "e"]
CONTENTS = [b"one", b"two", b"three", b"!", b"x" * 100]
FOLDERS = ["first", "second"]


@dataclass(frozen=True)
class Spec:
    """A node of a plan: inputs are (node number, output, take)."""

    kind: str
    params: dict[str, Any]
    inputs: tuple[tuple[int, str, Take], ...] = ()
    items: tuple[int, ...] = ()


def build_graph(specs: list[Spec]) -> Graph:
    graph = Graph()
    nodes: list[Node] = []
    for number, spec in enumerate(specs):
        inputs = {f"{i}": Input(nodes[source], output, take) for i, (source, output, take) in enumerate(spec.inputs)}
        hints = {"path": FOLDERS[number]} if spec.kind == "source" else {}
        items = tuple({"n": item} for item in spec.items)
        nodes.append(graph.add(Node(f"r:{number}", spec.kind, spec.params, inputs, items, hints)))
    return graph


@st.composite
def plans(draw: st.DrawFn) -> list[Spec]:
    """Two sources and up to seven nodes of all shapes; EACH ports of one node come from columns of the same length."""
    specs = [Spec("source", {}), Spec("source", {})]
    lengths: list[int | None] = [0, 1]  # what the length of a node's columns depends on; None for a single value
    for number in range(2, 2 + draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["one", "list", "each", "chain", "gpu"]))
        inputs: list[tuple[int, str, Take]] = []
        items: tuple[int, ...] = ()
        length = None if kind == "one" else number
        if kind in ("each", "chain", "gpu"):
            columns = [i for i, known in enumerate(lengths) if known is not None]
            first = draw(st.sampled_from([*columns, -1]))
            if first < 0:
                items = draw(ITEMS)
            else:
                length = lengths[first]
                same = [i for i in columns if lengths[i] == length]
                for source in [first, *draw(st.lists(st.sampled_from(same), max_size=1))]:
                    inputs.append((source, draw(st.sampled_from(OUTPUTS)), Take.EACH))
        for source in draw(st.lists(st.integers(0, number - 1), min_size=0 if inputs or items else 1, max_size=2)):
            takes = [Take.WHOLE] if lengths[source] is None else [Take.WHOLE, Take.FIRST, Take.LAST]
            inputs.append((source, draw(st.sampled_from(OUTPUTS)), draw(st.sampled_from(takes))))
        specs.append(Spec(kind, draw(params()), tuple(inputs), items))
        lengths.append(length)
    return specs


@st.composite
def params(draw: st.DrawFn) -> dict[str, Any]:
    chosen: dict[str, Any] = {"salt": draw(st.integers(0, 3))}
    if draw(st.booleans()):
        chosen["coarse"] = draw(st.integers(1, 2))
    if draw(st.integers(0, 5)) == 0:
        chosen["strict"] = True
    if draw(st.integers(0, 3)) == 0:
        chosen["long"] = 100
    return chosen


ITEMS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
FOLDER = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS), min_size=1)
EDITS = st.one_of(
    st.tuples(st.just("folder"), st.sampled_from(FOLDERS), FOLDER),
    st.tuples(st.just("file"), st.sampled_from(FOLDERS), st.sampled_from(NAMES), st.sampled_from(CONTENTS)),
    st.tuples(st.just("params"), st.integers(2, 8), params()),
    st.tuples(st.just("items"), st.integers(2, 8), ITEMS),
    st.tuples(st.just("version"), st.sampled_from(list("olecg")), st.integers(1, 2)),
    st.tuples(st.just("crash"), st.integers(0, 5)),
    st.tuples(st.just("damage"), st.sampled_from([2, 10]), st.integers(0, 10**6)),
    st.tuples(st.just("damage"), st.sampled_from([2, 10]), st.integers(0, 10**6)),
    st.tuples(st.just("restart")),
)


class Boom(Exception):
    """A kind's bug."""


class History:
    """One store, and what happens to it."""

    def __init__(self, root: Path, specs: list[Spec]) -> None:
        self.root, self.specs = root, specs
        self.bench = Bench(root)
        self._hurry()
        self.bench.world.folders = {"first": {"a": b"one", "b": b"two"}, "second": {"c": b"three"}}
        self.known: set[bytes] = set()

    def edit(self, edit: tuple[Any, ...]) -> None:
        match edit:
            case ("folder", folder, files):
                self.bench.world.folders[folder] = dict(files)
            case ("file", folder, name, data):
                self.bench.world.folders[folder][name] = data
            case ("params", number, changed) if number < len(self.specs):
                self.specs[number] = replace(self.specs[number], params=changed)
            case ("items", number, items) if number < len(self.specs) and self.specs[number].items:
                self.specs[number] = replace(self.specs[number], items=items)
            case ("version", initial, version):
                for kind in self.bench.kinds.values():
                    kind.VERSION = version if kind.NAME.startswith(initial) else kind.VERSION
            case ("crash", after):
                self._crash(after)
            case ("damage", rarity, seed):
                self.known.clear()
                self._restart(partial(ruin, self.root, rarity, random.Random(seed)))
            case ("restart",):
                self._restart(lambda: None)

    def _crash(self, after: int) -> None:
        """A build that dies in the middle; what it finished before may or may not have been stored."""
        left = after

        def explode(work: Work, item: Item) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Boom

        for kind in self.bench.kinds.values():
            kind.before = explode
        try:
            self.bench.run(build_graph(self.specs))
        except (Boom, InputError):
            pass
        for kind in self.bench.kinds.values():
            kind.before = lambda work, item: None

    def _restart(self, meanwhile: Callable[[], None]) -> None:
        """Another process, perhaps after the disk lost something."""
        self.bench.store.close()
        meanwhile()
        self.bench.store = blobs.Store(self.root)
        self._hurry()

    def _hurry(self) -> None:
        """Nothing here needs to survive a power cut."""
        self.bench.store.ledger._db.execute("PRAGMA synchronous = OFF")

    def check(self, jobs: int, keep_going: bool) -> None:
        """Build, and compare."""
        graph = build_graph(self.specs)
        expected, problems = evaluate(graph, self.bench.world, self.bench.kinds)
        for kind in self.bench.kinds.values():
            kind.ran, kind.made = [], []
        executor = self.bench.executor(graph, jobs, keep_going)
        try:
            while True:
                executor.run()
                if executor.ensure(columns_of(executor)) and executor.ensure(items_of(executor)):
                    break
        except InputError as error:
            found = {(problem.where, problem.cause) for problem in error.problems}
            assert found == problems if keep_going else found <= problems
        else:
            assert not problems
        finally:
            ran = [action for kind in self.bench.kinds.values() for action in kind.ran]
            assert not self.known & set(ran), "an action ran whose key was known"
            self.known |= {action for kind in self.bench.kinds.values() for action in kind.made}
        if keep_going or not problems:
            assert executor.results.keys() == expected.keys()
        if not problems:
            assert contents_of(executor.results, self.bench.store) == expected


def columns_of(executor: Executor) -> dict[Node, list[bytes]]:
    return {node: list(result.outputs.values()) for node, result in executor.results.items()}


def items_of(executor: Executor) -> dict[Node, list[bytes]]:
    read = executor.store.read
    return {
        node: [item for column in result.outputs.values() for item in split(read(column))]
        for node, result in executor.results.items()
        if result.names
    }


def ruin(root: Path, rarity: int, chance: random.Random) -> None:
    """Lose or change one stored thing in `rarity`: files, rows, traces."""
    for path in sorted(root.glob("cas/*/*")):
        if chance.randrange(rarity) == 0:
            if chance.randrange(2):
                path.unlink()
            else:
                path.write_bytes(flipped(path.read_bytes(), chance))
    database = sqlite3.connect(root / "ledger.db", isolation_level=None)
    for table, key, column in [("blob", "digest", "data"), ("action", "key", "outputs"), ("action", "key", "measures")]:
        for name, data in database.execute(f"SELECT {key}, {column} FROM {table} ORDER BY {key}").fetchall():
            if chance.randrange(rarity) == 0:
                if chance.randrange(2):
                    database.execute(f"DELETE FROM {table} WHERE {key} = ?", (name,))
                else:
                    raw = data if isinstance(data, bytes) else data.encode()
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (flipped(raw, chance), name))
    database.close()


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The data with one bit changed, or cut off."""
    if not data or chance.randrange(4) == 0:
        return data[: len(data) // 2] if data else b"?"
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(plans(), st.lists(st.tuples(EDITS, st.integers(1, 3), st.booleans()), min_size=1, max_size=6))
def test_any_history_gives_what_a_clean_build_gives(specs: list[Spec], history: list[tuple[Any, int, bool]]) -> None:
    with TemporaryDirectory() as folder, patch.object(blobs, "ROW_LIMIT", 64), patch("os.fsync"):
        run = History(Path(folder), specs)
        run.check(2, False)
        for edit, jobs, keep_going in history:
            run.edit(edit)
            run.check(jobs, keep_going)
        run.bench.store.close()
