"""Kinds without torch, for tests of the engine: what they make is a hash of everything they may read.

A wrong key, a wrong order or a stale input therefore shows in the bytes. `evaluate` computes the same graph without
engine, store or keys: it is what every build is compared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorac.digest import Digest, Manifest, digest, split
from lorac.engine.executor import Executor
from lorac.engine.protocol import Failed, FileReader, Item, Kind, Made, Scanner, Work
from lorac.engine.resolve import ENDS, Result
from lorac.errors import Problem
from lorac.graph.nodes import Graph, Input, Node, Shape, Take
from lorac.store.blobs import Store

OUTPUTS = ("a", "b")
Content = dict[str, list[bytes]]
"""What a node gave: output -> one value per item (a single one for shape ONE)."""


@dataclass
class World:
    """The user's files: a source node's `hints["path"]` names a folder here."""

    folders: dict[str, dict[str, bytes]] = field(default_factory=dict)

    NAME = "source"
    VERSION = 1
    SHAPE = Shape.LIST
    OUTPUTS = ("a", "b")
    INGESTS = True

    def scan(
        self, params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
    ) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
        files = sorted(self.folders[hints["path"]].items())
        names = [name for name, _ in files]
        blobs = {digest(data): data for data in [*(data for _, data in files), *(name.encode() for name in names)]}
        columns = {"a": [digest(data) for _, data in files], "b": [digest(name.encode()) for name in names]}
        return names, columns, blobs


class Fake:
    """A kind. `ran` lists the actions that it began, `made` those that it finished; `before` is called before each."""

    VERSION = 1
    OUTPUTS = OUTPUTS

    def __init__(self, shape: Shape, pool: str = "cpu", name: str = "") -> None:
        self.NAME, self.SHAPE, self.POOL = name or shape.value, shape, pool
        self.ran: list[bytes] = []
        self.made: list[bytes] = []
        self.before: Callable[[Work, Item], None] = lambda work, item: None

    def run(self, work: Work) -> Iterable[Made | Failed]:
        shared = {port: work.read(value) for port, value in work.shared.items()}
        columns = {port: [work.read(value) for value in values] for port, values in work.columns.items()}
        for item in work.items:
            self.before(work, item)
            self.ran.append(self._action(work, item))
            inputs = {port: work.read(value) for port, value in item.inputs.items()}
            made = values((self.NAME, self.VERSION), work.params, item.params, shared, columns, inputs, self.SHAPE)
            if isinstance(made, str):
                yield Failed(item.index, [Problem(item.name, made)])
                continue
            for number, outputs in enumerate(made):
                yield Made(item.index + number, outputs)
            self.made.append(self.ran[-1])

    def _action(self, work: Work, item: Item) -> bytes:
        manifest = Manifest()
        manifest.field("kind", (self.NAME, self.VERSION))
        manifest.field("params", (dict(work.params), dict(item.params)))
        manifest.field("inputs", (dict(work.shared), {k: list(v) for k, v in work.columns.items()}, dict(item.inputs)))
        return manifest.key()


def values(
    code: tuple[str, int],
    params: Mapping[str, Any],
    item: Mapping[str, Any],
    shared: Mapping[str, bytes],
    columns: Mapping[str, list[bytes]],
    inputs: Mapping[str, bytes],
    shape: Shape,
) -> list[dict[str, bytes]] | str:
    """What an action makes: one entry, or a few for a LIST; or why it fails.

    params: `coarse` n leaves only n different values, so that changes stop there; `strict` refuses inputs with "!";
    `long` makes values of that many bytes.
    """
    if params.get("strict") and any(b"!" in data for data in inputs.values()):
        return "has a !"
    hasher = hashlib.sha256(repr((code, sorted(params.items()), sorted(item.items()))).encode())
    for group in (shared, columns, inputs):
        hasher.update(repr(sorted(group.items())).encode())
    count = 1 + hasher.digest()[0] % 3 if shape is Shape.LIST else 1
    made = []
    for number in range(count):
        outputs = {}
        for output in OUTPUTS:
            data = hashlib.sha256(hasher.digest() + output.encode() + bytes([number])).digest()
            if params.get("coarse"):
                data = output.encode() + bytes([data[0] % params["coarse"]])
            outputs[output] = data * (params.get("long", 1) // len(data) + 1)
        made.append(outputs)
    return made


def evaluate(graph: Graph, world: World, kinds: Mapping[str, Fake]) -> tuple[dict[Node, Content], set[tuple[str, str]]]:
    """(the content of every node that can be made, (name, cause) of every item that cannot), by plain recursion."""
    contents: dict[Node, Content] = {}
    names: dict[Node, list[str]] = {}
    problems: set[tuple[str, str]] = set()
    for node in graph.nodes:
        if node.kind == "source":
            found = sorted(world.folders[node.hints["path"]].items())  # type: ignore[index]
            contents[node] = {"a": [data for _, data in found], "b": [name.encode() for name, _ in found]}
            names[node] = [name for name, _ in found]
        elif all(source.node in contents for source in node.inputs.values()):
            made, names[node] = _evaluate(node, kinds[node.kind], contents, names, problems)
            if made is not None:
                contents[node] = made
    return contents, problems


def _evaluate(
    node: Node,
    kind: Fake,
    contents: Mapping[Node, Content],
    names: Mapping[Node, list[str]],
    problems: set[tuple[str, str]],
) -> tuple[Content | None, list[str]]:
    shape, code = kind.SHAPE, (kind.NAME, kind.VERSION)
    shared: dict[str, bytes] = {}
    columns: dict[str, list[bytes]] = {}
    each: dict[str, list[bytes]] = {}
    own = [str(number + 1) for number in range(len(node.items))]
    for port, source in node.inputs.items():
        column = contents[source.node][source.output]
        if source.take in ENDS:
            shared[port] = column[ENDS[source.take]]
        elif source.take is Take.EACH:
            each[port] = column
            own = own or names[source.node]
        elif names[source.node]:
            columns[port] = column
        else:
            shared[port] = column[0]
    content: Content = {output: [] for output in OUTPUTS}
    failed = False
    for index in range(len(own) if shape in (Shape.EACH, Shape.CHAIN) else 1):
        inputs = {port: column[index] for port, column in each.items()}
        if shape is Shape.CHAIN and index:
            inputs |= {f"previous.{output}": content[output][-1] for output in OUTPUTS}
        item = node.items[index] if node.items else {}
        made = values(code, node.params, item, shared, columns, inputs, shape)
        if isinstance(made, str):
            problems.add((own[index] if own else "", made))
            failed = True
            if shape is Shape.CHAIN:
                break
            continue
        for outputs in made:
            for output in OUTPUTS:
                content[output].append(outputs[output])
    if shape is Shape.LIST:
        own = [str(number + 1) for number in range(len(content["a"]))]
    return (None if failed else content), (own if shape is not Shape.ONE else [])


def contents_of(results: Mapping[Node, Result], store: Store) -> dict[Node, Content]:
    """The same of a build's results, read from its store."""
    found: dict[Node, Content] = {}
    for node, result in results.items():
        found[node] = {
            output: [store.read(value) for value in (split(store.read(column)) if result.names else [column])]
            for output, column in result.outputs.items()
        }
    return found


class Bench:
    """Kinds, files and a store under one folder."""

    def __init__(self, root: Path) -> None:
        self.world = World()
        self.kinds = {shape.value: Fake(shape) for shape in Shape}
        self.kinds["gpu"] = Fake(Shape.EACH, "gpu", "gpu")
        self.store = Store(root)
        self.events: list[Any] = []

    @property
    def scanners(self) -> dict[str, Scanner]:
        return {"source": self.world}

    def executor(self, graph: Graph, jobs: int = 2, keep_going: bool = False, gang: bool = True) -> Executor:
        kinds: dict[str, Kind] = dict(self.kinds)
        told = self.events.append
        return Executor(graph, kinds, self.scanners, self.store, told, jobs=jobs, keep_going=keep_going, gang=gang)

    def run(self, graph: Graph, jobs: int = 2, keep_going: bool = False) -> dict[Node, Result]:
        """One build of the graph; `ran` says afterwards what it made."""
        for kind in self.kinds.values():
            kind.ran, kind.made = [], []
        self.events.clear()
        return self.executor(graph, jobs, keep_going).run()

    def ran(self) -> dict[str, int]:
        """kind -> how many items of it the last build made."""
        return {name: len(kind.ran) for name, kind in self.kinds.items() if kind.ran}


def take(node: Node, how: Take = Take.EACH, output: str = "a") -> Input:
    return Input(node, output, how)


def writing(data: bytes) -> Callable[[Path], None]:
    """What `keep` wants: a function that writes a file."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write
