"""Runs what is not already built.

The main thread alone decides, looks up and stores; worker threads only run kinds and put what they make on a queue.
A node goes WAITING → RUNNING → DONE, or FAILED, or SKIPPED because something before it failed. Kinds of the "cpu" pool
run in several pieces at once, kinds of the "gpu" pool (all that use torch) one at a time.

What a kind has yielded is committed before anything else happens to it, so a crash, an error or Ctrl-C loses at most the
item in work; an action that was begun keeps its `scratch` folder for the next try.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from lorac.digest import Digest
from lorac.engine import events
from lorac.engine.protocol import Failed, Kind, Made, Scanner, Work
from lorac.engine.resolve import BlobMissing, Lookup, Result, item_key, link, look_up, needed, split
from lorac.engine.scan import scan
from lorac.errors import InputError, Interrupted, LoracError, Problem, StoreError
from lorac.graph.nodes import Graph, Node, Shape
from lorac.store.blobs import Store
from lorac.store.ledger import Last

PIECES_PER_WORKER = 4
"""Into how many pieces per worker a cpu node's items are cut: enough to balance, few enough to stay cheap."""
MAX_REPAIRS = 3
"""How often one node may find its inputs damaged in one build before the disk is blamed."""


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class Progress:
    """What the executor knows of one node."""

    state: State = State.WAITING
    look: Lookup | None = None
    pieces: int = 0
    ran: int = 0
    repairs: int = 0
    started: float = 0.0
    seconds: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _PieceEnded:
    """A worker is through with its piece; `error` is what stopped it."""

    error: BaseException | None


class Executor:
    """One build of one graph. `run` gives a result for every node, or raises one error for all that went wrong."""

    def __init__(
        self,
        graph: Graph,
        kinds: Mapping[str, Kind],
        scanners: Mapping[str, Scanner],
        store: Store,
        listen: events.Listener,
        *,
        jobs: int,
        keep_going: bool = False,
    ) -> None:
        self.graph, self.kinds, self.scanners, self.store, self.listen = graph, kinds, scanners, store, listen
        self.jobs, self.keep_going = jobs, keep_going
        self.cancelled = threading.Event()
        self.results: dict[Node, Result] = {}
        self.nodes = {node: Progress() for node in graph.nodes}
        self.problems: list[Problem] = []
        self.errors: list[LoracError] = []
        self._queue: queue.SimpleQueue[tuple[Node, Made | Failed | events.Event | _PieceEnded | dict[str, float]]] = (
            queue.SimpleQueue()
        )
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._build = 0
        self._outside: set[Digest] = set()  # digests of files that are read from where they are

    # -- the story ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[Node, Result]:
        """Bring every node of the graph up to date."""
        self._pools = {"cpu": ThreadPoolExecutor(self.jobs, "lorac-cpu"), "gpu": ThreadPoolExecutor(1, "lorac-gpu")}
        try:
            while not self._settled():
                self._start_ready()
                if self._running():
                    self._receive()
        except KeyboardInterrupt:
            self._cancel()
        except BaseException:
            self._cancel_workers()
            raise
        finally:
            for pool in self._pools.values():
                pool.shutdown(wait=True, cancel_futures=True)
        self._raise_errors()
        return self.results

    def ensure(self, values: Mapping[Node, Iterable[Digest]]) -> bool:
        """Whether the store still holds these outputs of these nodes; the nodes of lost ones are set back for `run`."""
        damaged = {node: lost for node, digests in values.items() if (lost := self.store.missing(digests))}
        for node, lost in damaged.items():
            self._set_back(node, lost)
        return not damaged

    def _settled(self) -> bool:
        return all(progress.state not in (State.WAITING, State.RUNNING) for progress in self.nodes.values())

    def _running(self) -> bool:
        return any(progress.state is State.RUNNING for progress in self.nodes.values())

    def _start_ready(self) -> None:
        for node in self.graph.nodes:
            if self.nodes[node].state is not State.WAITING:
                continue
            before = [self.nodes[source.node].state for source in node.inputs.values()]
            if any(state in (State.FAILED, State.SKIPPED) for state in before):
                self.nodes[node].state = State.SKIPPED
            elif all(state is State.DONE for state in before):
                self._advance(node)

    def _advance(self, node: Node) -> None:
        """All inputs are there: find the node's result, or start making it."""
        if node.kind in self.scanners:
            self._scan(node)
            return
        progress, kind = self.nodes[node], self.kinds[node.kind]
        if self._stopping() and kind.POOL == "gpu":
            progress.state = State.SKIPPED
            return
        try:
            look = progress.look = look_up(node, kind, self.results, self.store)
            if look.result is None and (todo := look.missing()):
                lost = self.store.missing(needed(look, todo, self.store) - self._outside)
                if lost:
                    self._repair(node, lost)
                    return
                progress.state, progress.started = State.RUNNING, time.perf_counter()
                self.listen(events.NodeStarted(node.name, node.kind, len(todo), look.total))
                self._submit(node, todo)
                return
        except BlobMissing as missing:
            self._repair(node, {missing.digest})
            return
        self._finish(node)

    def _stopping(self) -> bool:
        """After an error only cheap work goes on, so that all bad files are found at once."""
        return bool(self.problems or self.errors) and not self.keep_going

    def _scan(self, node: Node) -> None:
        progress = self.nodes[node]
        started = time.perf_counter()
        try:
            self.results[node], look = scan(node, self.scanners[node.kind], self.store)
        except LoracError as error:
            self._fail(node, error)
            return
        progress.look, progress.state = look, State.DONE
        if not self.scanners[node.kind].INGESTS:
            self._outside |= set(self.results[node].outputs.values())
        self._remember(node, 0, len(self.results[node].names) or 1)
        progress.seconds = time.perf_counter() - started

    # -- running a kind -------------------------------------------------------------------------------------------------

    def _submit(self, node: Node, todo: Sequence[int]) -> None:
        kind, progress = self.kinds[node.kind], self.nodes[node]
        if kind.SHAPE is Shape.CHAIN:
            pieces = [todo[:1]]  # the next item's key needs this one's outputs
        elif kind.POOL == "cpu":
            size = max(1, -(-len(todo) // (self.jobs * PIECES_PER_WORKER)))
            pieces = [todo[i : i + size] for i in range(0, len(todo), size)]
        else:
            pieces = [todo]
        progress.pieces = len(pieces)
        for piece in pieces:
            work = self._work(node, piece)
            self._pools[kind.POOL].submit(self._run_piece, node, kind, work)

    def _work(self, node: Node, piece: Sequence[int]) -> Work:
        look = self.nodes[node].look
        assert look is not None
        key = look.item_keys[piece[0]] if look.item_keys else look.key

        def progress(done: float, total: float, note: str) -> None:
            self._queue.put((node, events.NodeProgress(node.name, node.kind, done, total, note)))

        return Work(
            params=node.params,
            hints=node.hints,
            items=[look.items[index] for index in piece],
            total=look.total,
            shared=look.shared,
            columns={port: split(self.store.read(column)) for port, column in look.whole.items()},
            read=self.store.read,
            read_many=self.store.read_many,
            open=self._open,
            scratch=self.store.scratch(key),
            keep=partial(self.store.keep, key),
            cancelled=self.cancelled,
            progress=progress,
            measure=lambda measures: self._queue.put((node, dict(measures))),
            warn=lambda text: self._queue.put((node, events.Warned(node.name, text))),
            session=self.nodes[node].session,
        )

    def _open(self, value: Digest) -> Path | bytes:
        """A large blob as a file that can be mapped, a small one as bytes."""
        blobs = self.store.ledger.blobs([value])
        return self.store.read(value) if blobs else self.store.location(value)

    def _run_piece(self, node: Node, kind: Kind, work: Work) -> None:
        """In a worker thread."""
        try:
            for made in kind.run(work):
                self._queue.put((node, made))
                if self.cancelled.is_set():
                    raise Interrupted("interrupted")
            self._queue.put((node, _PieceEnded(None)))
        except BaseException as error:  # handed to the main thread, which raises or reports it
            self._queue.put((node, _PieceEnded(error)))

    # -- what workers send ----------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take everything that has arrived, and store it in one transaction."""
        messages = []
        try:
            messages.append(self._queue.get(timeout=0.2))  # with a timeout, so that Windows sees Ctrl-C
            while not self._queue.empty():
                messages.append(self._queue.get())
        except queue.Empty:
            if not messages:
                return
        made: dict[Node, list[Made]] = {}
        for node, message in messages:
            if isinstance(message, Made):
                made.setdefault(node, []).append(message)
        if made:
            self._store(made)
        for node, message in messages:
            match message:
                case Made():
                    pass
                case Failed():
                    self._fail_item(node, message)
                case _PieceEnded():
                    self._piece_ended(node, message.error)
                case dict():
                    self._measured(node, message)
                case _:
                    self.listen(message)

    def _store(self, made: Mapping[Node, Sequence[Made]]) -> None:
        """Commit finished items: blobs first, then, in the same transaction, the traces that name them."""
        with self.store.ledger.transaction():
            for node, items in made.items():
                kind, progress = self.kinds[node.kind], self.nodes[node]
                look = progress.look
                assert look is not None
                width = len(kind.OUTPUTS)
                digests = self.store.put(item.outputs[output] for item in items for output in kind.OUTPUTS)
                for number, item in enumerate(items):
                    outputs = b"".join(digests[number * width : (number + 1) * width])
                    if kind.SHAPE is Shape.LIST and item.index >= len(look.found):
                        look.found.append(None)
                    look.found[item.index] = outputs
                    progress.ran += 1
                    if kind.SHAPE is not Shape.LIST:
                        seconds = (time.perf_counter() - progress.started) / progress.ran
                        key = look.item_keys[item.index]
                        if key != look.key:
                            self.store.ledger.record(key, kind.NAME, outputs, seconds, progress.measures)

    def _measured(self, node: Node, measures: Mapping[str, float]) -> None:
        """Sum what adds up; keep the largest of what is called a peak."""
        total = self.nodes[node].measures
        for name, value in measures.items():
            total[name] = max(total.get(name, 0.0), value) if name.startswith("peak") else total.get(name, 0.0) + value

    def _piece_ended(self, node: Node, error: BaseException | None) -> None:
        progress = self.nodes[node]
        if progress.state is not State.RUNNING:
            return
        if isinstance(error, BlobMissing):
            progress.pieces = 0
            self._repair(node, {error.digest})
            return
        if error is not None:
            self._fail(node, error)
            return
        progress.pieces -= 1
        look, kind = progress.look, self.kinds[node.kind]
        assert look is not None
        if progress.pieces == 0:
            if kind.SHAPE is Shape.CHAIN and not self.problems and self._next_link(node, look, kind):
                return
            if None in look.found:
                progress.state = State.FAILED
            else:
                self._finish(node)

    def _next_link(self, node: Node, look: Lookup, kind: Kind) -> bool:
        """Start the next item of a chain, unless it is found; False when the chain is complete."""
        for index in range(look.total):
            if look.found[index] is not None:
                continue
            previous = look.found[index - 1]
            assert previous is not None
            look.items[index] = link(look.items[index], kind, previous)
            del look.item_keys[index:]
            look.item_keys.append(item_key(look.prefix, look.items[index]))
            look.found[index] = self.store.ledger.outputs([look.item_keys[index]]).get(look.item_keys[index])
            if look.found[index] is None:
                self._submit(node, [index])
                return True
        return False

    # -- endings --------------------------------------------------------------------------------------------------------

    def _finish(self, node: Node) -> None:
        """Every item is there: make the node's columns, remember its trace, and say what it took."""
        progress, kind = self.nodes[node], self.kinds[node.kind]
        look = progress.look
        assert look is not None
        if look.result is None:
            progress.seconds = time.perf_counter() - progress.started if progress.started else 0.0
            self.results[node] = look.result = self._conclude(node, kind, look)
        self.results[node] = look.result
        progress.state, progress.session = State.DONE, {}
        total = 1 if kind.SHAPE in (Shape.ONE, Shape.LIST) else look.total
        ran = min(progress.ran, total)
        self._remember(node, ran, total)
        for key in look.item_keys if progress.ran else ():
            self.store.drop_scratch(key)
        self.listen(events.NodeFinished(node.name, node.kind, ran, total, progress.seconds, dict(progress.measures)))

    def _conclude(self, node: Node, kind: Kind, look: Lookup) -> Result:
        rows = [split(outputs) for outputs in look.found if outputs is not None]
        measures = self.nodes[node].measures
        with self.store.ledger.transaction():
            if kind.SHAPE is Shape.ONE:
                outputs, names = rows[0], []
            else:
                outputs = self.store.put(b"".join(column) for column in zip(*rows, strict=True))
                names = [item.name for item in look.items]
                if kind.SHAPE is Shape.LIST:
                    names = [str(index + 1) for index in range(len(rows))]
            self.store.ledger.record(look.key, kind.NAME, b"".join(outputs), self.nodes[node].seconds, measures)
        return Result(dict(zip(kind.OUTPUTS, outputs, strict=True)), names)

    def _remember(self, node: Node, ran: int, total: int) -> None:
        """Keep the manifest of this build and of the one before it, when they differ: `lorac why` reads them."""
        look = self.nodes[node].look
        assert look is not None
        for name in self.graph.names[node]:
            last = self.store.ledger.last(name)
            changed = last is None or last.manifest.fields != look.manifest.fields
            if not changed and not ran:
                continue
            self._build = self._build or self.store.ledger.new_build()
            previous = None if last is None else last.manifest if changed else last.previous
            with self.store.ledger.transaction():
                self.store.ledger.put_last(name, Last(self._build, ran, total, look.manifest, previous))

    def _fail_item(self, node: Node, failed: Failed) -> None:
        self.problems += failed.problems
        for problem in failed.problems:
            self.listen(events.Failure(node.name, str(problem)))

    def _fail(self, node: Node, error: BaseException) -> None:
        self.nodes[node].state = State.FAILED
        if isinstance(error, InputError):
            self._fail_item(node, Failed(0, error.problems))
        elif isinstance(error, LoracError):
            self.errors.append(error)
            self.listen(events.Failure(node.name, str(error)))
        else:
            raise error

    def _repair(self, node: Node, lost: set[Digest]) -> None:
        """An input's bytes are gone or damaged: set back the nodes that promised them, and wait for them."""
        progress = self.nodes[node]
        progress.repairs += 1
        if progress.repairs > MAX_REPAIRS:
            self._fail(node, StoreError(f"{self.store.root}: blobs vanish while they are used; is the disk failing?"))
            return
        progress.state, progress.look = State.WAITING, None
        for source in {source.node: None for source in node.inputs.values()}:
            self._set_back(source, lost)

    def _set_back(self, node: Node, lost: set[Digest]) -> None:
        """Forget the traces of this node that name lost bytes, so that they are made again."""
        progress, result = self.nodes[node], self.results[node]
        columns = set(result.outputs.values())
        damaged = columns & (lost | self.store.missing(columns))
        if not damaged and result.names:
            damaged = {digest for column in columns for digest in split(self.store.read(column))} & lost
        if not damaged:
            return
        assert progress.look is not None
        self.listen(events.Warned(node.name, "stored bytes are missing or damaged; they are made again"))
        with self.store.ledger.transaction():
            self.store.ledger.forget(progress.look.key, damaged)
        del self.results[node]
        progress.state, progress.look, progress.ran = State.WAITING, None, 0

    # -- stopping -------------------------------------------------------------------------------------------------------

    def _cancel_workers(self) -> None:
        self.cancelled.set()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _cancel(self) -> None:
        """Ctrl-C: let the workers save what they have, and store it."""
        self.listen(events.Warned("", "interrupted: saving what is done (Ctrl-C again to stop at once)"))
        self._cancel_workers()
        for pool in self._pools.values():
            pool.shutdown(wait=True)
        made: dict[Node, list[Made]] = {}
        while not self._queue.empty():
            node, message = self._queue.get()
            if isinstance(message, Made):
                made.setdefault(node, []).append(message)
        if made:
            self._store(made)
        raise Interrupted("interrupted; the next build goes on from here")

    def _raise_errors(self) -> None:
        if self.problems:
            raise InputError(sorted(dict.fromkeys(self.problems), key=lambda problem: (problem.where, problem.cause)))
        if self.errors:
            raise self.errors[0]

