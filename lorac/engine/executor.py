"""Runs what is not already built.

The main thread alone decides, looks up and stores; worker threads only run kinds and put what they make on a queue.
A node goes WAITING → RUNNING → DONE, or FAILED, or SKIPPED because something before it failed. Kinds of the "cpu" pool
run in several pieces at once, kinds of the "gpu" pool (all that use torch) one at a time, in the order of the graph: of
many recipes the first is trained, exported and drawn before the second begins.

What a kind has yielded is committed before anything else happens to it, so a crash, an error or Ctrl-C loses at most
the item in work; an action that was begun keeps its `scratch` folder for the next try.

Bytes that the store has lost are made again: the node that promised them is set back to WAITING (see `_repair`).
Workers may still be busy with what they were given before; so every message carries the look-up that it belongs to.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any

from lorac.digest import Digest, split
from lorac.engine import events
from lorac.engine.pieces import Body, Ended, Free, Message, Piece, run_gang, run_piece
from lorac.engine.protocol import Failed, Ganging, Kind, Made, Scanner, Work
from lorac.engine.resolve import BlobMissing, Lookup, Result, follow_chain, look_up, needed, numbers
from lorac.engine.scan import scan
from lorac.errors import InputError, Interrupted, LoracError, Problem, StoreError
from lorac.graph.gang import gangs
from lorac.graph.nodes import Graph, Input, Node, Shape
from lorac.store import files
from lorac.store.blobs import Store
from lorac.store.ledger import Last

PIECES_PER_WORKER = 4
"""Into how many pieces per worker a cpu node's items are cut: enough to balance, few enough to stay cheap."""
MAX_REPAIRS = 10
"""How often one node may find its inputs damaged in one build before the disk is blamed."""


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class Progress:
    """What the executor knows of one node.

    look: the try that is going on. pieces: of this try, still with workers. asked, failed: items of this try.
    lost: the result that the node had before it was set back.
    """

    state: State = State.WAITING
    look: Lookup | None = None
    pieces: int = 0
    asked: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    ran: int = 0
    repairs: int = 0
    lost: Result | None = None
    started: float = 0.0
    seconds: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        """Begin again, with nothing that was derived from the inputs."""
        self.state, self.look, self.session = State.WAITING, None, {}
        self.asked, self.failed = set(), set()


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
        gang: bool = True,
    ) -> None:
        self.graph, self.kinds, self.scanners, self.store, self.listen = graph, kinds, scanners, store, listen
        self.jobs, self.keep_going = jobs, keep_going
        self.cancelled = threading.Event()
        self.results: dict[Node, Result] = {}
        self.nodes = {node: Progress() for node in graph.nodes}
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        self.problems: list[Problem] = []
        self.errors: list[LoracError] = []
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._pieces: list[Future[None]] = []
        self._waiting: list[Piece] = []
        self._busy = False  # whether the gpu pool has a piece
        self._gangs = gangs(graph, self._gang_group) if gang else {}
        self._build = 0
        self._outside: set[Digest] = set()  # digests of files that are read from where they are

    # -- the story ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[Node, Result]:
        """Bring every node of the graph up to date."""
        self._pieces, self._waiting, self._busy = [], [], False
        self._drain()  # what came after the end of an earlier run
        self._pools = {"cpu": ThreadPoolExecutor(self.jobs, "lorac-cpu"), "gpu": ThreadPoolExecutor(1, "lorac-gpu")}
        try:
            while not self._settled():
                self._start_ready()
                self._start_waiting()
                if self._running():
                    self._receive()
        except KeyboardInterrupt:
            self._wind_down("interrupted: saving what is done (Ctrl-C again to stop at once)")
            raise Interrupted("interrupted; the next build goes on from here") from None
        except BaseException:
            self._wind_down()
            raise
        finally:
            for pool in self._pools.values():
                pool.shutdown(wait=True, cancel_futures=True)
        self._raise_errors()
        return self.results

    def ensure(self, values: Mapping[Node, Iterable[Digest]]) -> bool:
        """Whether the store has these outputs of these nodes intact; the nodes of lost ones are set back for `run`."""
        damaged = {node: lost for node, digests in values.items() if (lost := self.store.damaged(digests))}
        for node, lost in damaged.items():
            self._count_repair(node)
            self._forget(lost)
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
            before = {source: self.nodes[source.node].state for source in node.inputs.values()}
            lost = [source for source, state in before.items() if state in (State.FAILED, State.SKIPPED)]
            if lost and (len(lost) == len(before) or not all(self._can_do_without(source) for source in lost)):
                self.nodes[node].state = State.SKIPPED
            elif all(state is State.DONE for source, state in before.items() if source not in lost):
                self._advance(node)

    def _can_do_without(self, source: Input) -> bool:
        return source.optional and self.keep_going

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
            look = look_up(node, kind, self.results, self.store)
        except BlobMissing as missing:
            self._repair(node, {missing.digest})
            return
        if look.result is None and look.missing():
            inputs = needed(look) - self._outside
            lost = self.store.damaged(inputs) if progress.repairs else self.store.missing(inputs)
            if lost:
                self._repair(node, lost)
                return
        progress.look = look
        if look.result is None and look.missing():
            progress.state, progress.started = State.RUNNING, 0.0
            self._submit(node, look, look.missing())
        else:
            self._finish(node, look)

    def _stopping(self) -> bool:
        """After an error only cheap work goes on, so that all bad files are found at once."""
        return bool(self.problems or self.errors) and not self.keep_going

    def _scan(self, node: Node) -> None:
        progress, scanner = self.nodes[node], self.scanners[node.kind]
        started = time.perf_counter()
        try:
            result, progress.look = scan(node, scanner, self.store, rewrite=progress.lost is not None)
        except LoracError as error:
            self._fail(node, error)
            return
        if not scanner.INGESTS:
            self._outside |= set(result.outputs.values())
        progress.seconds = time.perf_counter() - started
        self._done(node, result)
        self._remember(node, progress.look, 0, len(result.names) or 1)

    # -- running a kind ----------------------------------------------------------------------------------------------

    def _submit(self, node: Node, look: Lookup, todo: Sequence[int]) -> None:
        """Give missing items to workers; of a chain the next one, because later keys need its outputs."""
        kind, progress = self.kinds[node.kind], self.nodes[node]
        if kind.SHAPE is Shape.CHAIN:
            pieces = [todo[:1]]
        elif kind.POOL == "cpu":
            size = max(1, -(-len(todo) // (self.jobs * PIECES_PER_WORKER)))
            pieces = [todo[i : i + size] for i in range(0, len(todo), size)]
        else:
            pieces = [todo]
        progress.pieces = len(pieces)
        for piece in pieces:
            progress.asked.update(piece)
            ready = Piece(self._order[node], piece[0], node, look, self._work(node, look, piece))
            if kind.POOL == "gpu":
                heappush(self._waiting, ready)
            else:
                self._start(ready)

    def _start_waiting(self) -> None:
        """Give the free gpu pool the first piece that waits: by now those that the last one led to wait too.

        After an error nothing that waits is begun.
        """
        if self._stopping():
            for piece in self._waiting:
                if self.nodes[piece.node].look is piece.look:
                    self.nodes[piece.node].state = State.SKIPPED
            self._waiting = []
        held = []
        while self._waiting and not self._busy:
            piece = heappop(self._waiting)
            if self.nodes[piece.node].look is not piece.look:
                continue  # its node was set back, and begins again
            if self._awaits_gang(piece):
                held.append(piece)
            else:
                self._start_gpu(piece)
        if held and not self._busy and not self._others_run(held):
            self._start_gpu(held.pop(0))  # those that it waits for wait for it
        for piece in held:
            heappush(self._waiting, piece)

    def _start_gpu(self, piece: Piece) -> None:
        """Run a piece, with others that wait if it can have a gang."""
        self._busy = True
        kind, gang = self.kinds[piece.node.kind], self._gang_of(piece)
        if len(gang) < 2 or not isinstance(kind, Ganging):
            self._start(piece)
            return
        self._waiting = [other for other in self._waiting if other not in gang]
        heapify(self._waiting)
        for member in gang:
            self._announce(member)
        self.listen(events.GangStarted([member.node.name for member in gang], kind.NAME))
        self._pieces.append(self._pools["gpu"].submit(run_gang, kind, gang, self._queue.put))

    def _start(self, piece: Piece) -> None:
        kind = self.kinds[piece.node.kind]
        self._announce(piece)
        self._pieces.append(self._pools[kind.POOL].submit(run_piece, kind, piece, self._queue.put))

    def _announce(self, piece: Piece) -> None:
        node, progress = piece.node, self.nodes[piece.node]
        if not progress.started:
            progress.started = time.perf_counter()
            self.listen(events.NodeStarted(node.name, node.kind, len(piece.look.missing()), piece.look.total))

    def _work(self, node: Node, look: Lookup, piece: Sequence[int]) -> Work:
        key = look.item_keys[piece[0]]

        def send(body: Body) -> None:
            self._queue.put(Message(node, look, body))

        return Work(
            params=node.params,
            hints=node.hints,
            items=[look.items[index] for index in piece],
            total=look.total,
            shared=look.shared,
            columns=look.columns,
            read=self.store.read,
            read_many=self.store.read_many,
            open=self.store.open,
            scratch=self.store.scratch(key),
            keep=partial(self.store.keep, key),
            kept=partial(self.store.kept, key),
            cancelled=self.cancelled,
            progress=lambda done, total, note: send(events.NodeProgress(node.name, node.kind, done, total, note)),
            measure=lambda measures: send(dict(measures)),
            warn=lambda text: send(events.Warned(node.name, text)),
            session=self.nodes[node].session,
        )

    # -- gangs -------------------------------------------------------------------------------------------------------

    def _gang_group(self, node: Node) -> Hashable | None:
        kind = self.kinds.get(node.kind)
        return kind.gang_group(node) if isinstance(kind, Ganging) else None

    def _awaits_gang(self, piece: Piece) -> bool:
        """Whether nodes that may go together with this one are still to come."""
        return any(self.nodes[node].state is State.WAITING for node in self._gangs.get(piece.node, ()))

    def _others_run(self, held: Sequence[Piece]) -> bool:
        nodes = {piece.node for piece in held}
        return any(progress.state is State.RUNNING and node not in nodes for node, progress in self.nodes.items())

    def _gang_of(self, piece: Piece) -> list[Piece]:
        """The piece and those that are run with it, of equal gangs as many as there can be."""
        kind, nodes = self.kinds[piece.node.kind], self._gangs.get(piece.node, [])
        if len(nodes) < 2 or not isinstance(kind, Ganging):
            return [piece]
        waiting = sorted(p for p in self._waiting if p.node in nodes and self.nodes[p.node].look is p.look)
        try:
            key = kind.gang_key(piece.work)
            alike = [piece, *(other for other in waiting if kind.gang_key(other.work) == key)]
        except BlobMissing:
            return [piece]  # who runs into it has it made again
        rounds = -(-len(alike) // kind.gang_limit(piece.work))
        return alike[: -(-len(alike) // rounds)]

    def _take_waiting(self, look: Lookup) -> Work | None:
        """What waits of this try of a node, which then no longer waits."""
        found = next((piece for piece in self._waiting if piece.look is look), None)
        if found is None:
            return None
        self._waiting.remove(found)
        heapify(self._waiting)
        return found.work

    # -- what workers send -------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take everything that has arrived, store it in one transaction, then act on it."""
        try:
            messages = [self._queue.get(timeout=0.2)]  # with a timeout, so that Windows sees Ctrl-C
        except queue.Empty:
            return
        messages += self._drain()
        self._store(messages)
        for message in messages:
            node, look = message.node, message.look
            current = self.nodes[node].look is look
            match message.body:
                case Failed() if current:
                    self._fail_item(node, message.body)
                case Ended(error, inbox):
                    if current:
                        self._piece_ended(node, look, error)
                    if inbox is not None:
                        inbox.put(self._take_waiting(look))
                case Free():
                    self._busy = False
                case dict():
                    self._measured(node, message.body)
                case events.NodeProgress() | events.Warned():
                    self.listen(message.body)

    def _drain(self) -> list[Message]:
        messages = []
        while not self._queue.empty():
            messages.append(self._queue.get())
        return messages

    def _store(self, messages: Iterable[Message]) -> None:
        """Commit finished items: blobs first, then, in the same transaction, the traces that name them.

        Items of an earlier try of a node count too: their keys say from what they were made.
        """
        made = [(message.node, message.look, message.body) for message in messages if isinstance(message.body, Made)]
        if not made:
            return
        with self.store.ledger.transaction():
            values = (item.outputs[output] for node, _, item in made for output in self.kinds[node.kind].OUTPUTS)
            digests = iter(self.store.put(values))
            for node, look, item in made:
                kind, progress = self.kinds[node.kind], self.nodes[node]
                if kind.SHAPE is Shape.LIST and item.index == len(look.found):
                    look.found.append(None)
                outputs = b"".join(islice(digests, len(kind.OUTPUTS)))
                if kind.SHAPE is Shape.EACH:
                    look.fill(item.index, outputs)
                else:
                    look.found[item.index] = outputs
                progress.ran += 1
                if kind.SHAPE in (Shape.EACH, Shape.CHAIN):
                    seconds = (time.perf_counter() - progress.started) / progress.ran
                    self.store.ledger.record(look.item_keys[item.index], kind.NAME, outputs, seconds, progress.measures)

    def _measured(self, node: Node, measures: Mapping[str, float]) -> None:
        """Sum what adds up; keep the largest of what is called a peak."""
        total = self.nodes[node].measures
        for name, value in measures.items():
            total[name] = max(total.get(name, 0.0), value) if name.startswith("peak") else total.get(name, 0.0) + value

    def _piece_ended(self, node: Node, look: Lookup, error: BaseException | None) -> None:
        progress, kind = self.nodes[node], self.kinds[node.kind]
        if progress.state is not State.RUNNING:
            return
        if isinstance(error, BlobMissing):
            self._repair(node, {error.digest})
            return
        if error is not None:
            self._fail(node, error)
            return
        progress.pieces -= 1
        if progress.pieces:
            return
        unmade = {index for index in progress.asked if look.found[index] is None}
        if unmade - progress.failed:
            raise RuntimeError(f"the kind {kind.NAME} says nothing of its items {sorted(unmade - progress.failed)}")
        if unmade:
            twins = {twin for index in unmade for twin in look.twins(index)} - progress.asked
            if twins:  # they fail, too, but all of them are to be named
                self._submit(node, look, sorted(twins))
            else:
                progress.state = State.FAILED
            return
        if kind.SHAPE is Shape.CHAIN:
            follow_chain(look, kind, self.store)
        if not look.missing():
            self._finish(node, look)
        elif self._stopping():
            progress.state = State.SKIPPED
        else:
            self._submit(node, look, look.missing())

    # -- endings -----------------------------------------------------------------------------------------------------

    def _finish(self, node: Node, look: Lookup) -> None:
        """Every item is there: make the node's columns, remember its trace, and say what it took."""
        progress, kind = self.nodes[node], self.kinds[node.kind]
        if look.result is None:
            progress.seconds = time.perf_counter() - progress.started if progress.started else 0.0
            look.result = self._conclude(kind, look, progress)
            self.store.drop_scratch(look.item_keys)
        progress.session = {}
        self._done(node, look.result)
        total = 1 if kind.SHAPE in (Shape.ONE, Shape.LIST) else look.total
        ran = min(progress.ran, total)
        self._remember(node, look, ran, total)
        self.listen(events.NodeFinished(node.name, node.kind, ran, total, progress.seconds, dict(progress.measures)))

    def _conclude(self, kind: Kind, look: Lookup, progress: Progress) -> Result:
        rows = [split(outputs) for outputs in look.found if outputs is not None]
        with self.store.ledger.transaction():
            if kind.SHAPE is Shape.ONE:
                outputs, names = rows[0], []
            else:
                outputs = self.store.put(b"".join(column) for column in zip(*rows, strict=True))
                names = numbers(len(rows)) if kind.SHAPE is Shape.LIST else [item.name for item in look.items]
            self.store.ledger.record(look.key, kind.NAME, b"".join(outputs), progress.seconds, progress.measures)
        return Result(dict(zip(kind.OUTPUTS, outputs, strict=True)), names)

    def _done(self, node: Node, result: Result) -> None:
        """The node has its result. If it lost another one in this build, what was made of that is made again."""
        progress = self.nodes[node]
        self.results[node], progress.state = result, State.DONE
        lost, progress.lost = progress.lost, None
        if lost is None or lost == result:
            return
        stale = {node}
        for later in self.graph.nodes:
            if any(source.node in stale for source in later.inputs.values()):
                stale.add(later)
                self.results.pop(later, None)
                if self.nodes[later].state in (State.RUNNING, State.DONE):
                    self.nodes[later].reset()

    def _remember(self, node: Node, look: Lookup, ran: int, total: int) -> None:
        """Keep the manifest of this build and of the one before it, when they differ: `lorac why` reads them."""
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
        self.nodes[node].failed.add(failed.index)
        self.problems += failed.problems
        for problem in failed.problems:
            self.listen(events.Failure(node.name, str(problem)))

    def _fail(self, node: Node, error: BaseException) -> None:
        self.nodes[node].state = State.FAILED
        if isinstance(error, OSError) and files.is_full(error):
            error = files.refusal(self.store.root, error)
        if isinstance(error, InputError):
            self._fail_item(node, Failed(0, error.problems))
        elif isinstance(error, LoracError):
            self.errors.append(error)
            self.listen(events.Failure(node.name, str(error)))
        else:
            raise error

    # -- lost bytes --------------------------------------------------------------------------------------------------

    def _repair(self, node: Node, lost: set[Digest]) -> None:
        """An input's bytes are gone or damaged: set back the nodes that promised them, and wait for them."""
        try:
            self._count_repair(node)
        except StoreError as error:
            self._fail(node, error)
            return
        self.nodes[node].reset()
        self._forget(lost)
        for source in {source.node: None for source in node.inputs.values()}:
            self._set_back(source, lost)

    def _count_repair(self, node: Node) -> None:
        self.nodes[node].repairs += 1
        if self.nodes[node].repairs > MAX_REPAIRS:
            raise StoreError(f"{self.store.root}: blobs vanish while they are used; is the disk failing?")

    def _forget(self, lost: set[Digest]) -> None:
        """Drop every trace that promises lost bytes: those of items, also of a chain that reads what it made itself."""
        with self.store.ledger.transaction():
            self.store.ledger.forget((), lost)

    def _set_back(self, node: Node, lost: set[Digest]) -> None:
        """Forget the trace of this node, if it leads to lost bytes, so that they are made again."""
        progress = self.nodes[node]
        if progress.state is not State.DONE:
            return  # it is being made again already
        damaged = self._damage(self.results[node], lost)
        if not damaged:
            return
        assert progress.look is not None
        self.listen(events.Warned(node.name, "stored bytes are missing or damaged; they are made again"))
        with self.store.ledger.transaction():
            self.store.ledger.forget([progress.look.key], damaged)
        progress.lost = self.results.pop(node)
        progress.reset()

    def _damage(self, result: Result, lost: set[Digest]) -> set[Digest]:
        """Which lost bytes a result leads to. All its columns are checked, so that one repair is enough for all."""
        columns = set(result.outputs.values()) - self._outside
        damaged = columns & lost | self.store.damaged(columns if result.names else ())
        if result.names:
            for column in columns - damaged:
                damaged |= set(split(self.store.read(column))) & lost
        return damaged

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _wind_down(self, warning: str = "") -> None:
        """Let the workers save what they have, and store what they made."""
        try:
            self.cancelled.set()
            if warning:
                self.listen(events.Warned("", warning))
            for piece in self._pieces:
                piece.cancel()
            while wait(self._pieces, timeout=0.2).not_done:  # with a timeout, so that Windows sees Ctrl-C
                pass
            with suppress(StoreError):  # a full disk may be why we are here
                self._store(self._drain())
        except KeyboardInterrupt:
            os._exit(Interrupted.exit_code)  # a thread cannot be stopped, and the store survives this

    def _raise_errors(self) -> None:
        if self.problems:
            raise InputError(sorted(dict.fromkeys(self.problems), key=lambda problem: (problem.where, problem.cause)))
        if self.errors:
            raise self.errors[0]
