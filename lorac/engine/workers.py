"""The threads that run kinds: a pool of several for "cpu" pieces, one for "gpu" pieces, and what waits for that one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from heapq import heapify, heappop, heappush

from lorac.engine import events
from lorac.engine.gangs import Gangs
from lorac.engine.pieces import Body, Ended, Message, Piece, run_gang, run_piece
from lorac.engine.progress import Standing, State
from lorac.engine.protocol import Ganging, Kind, Work
from lorac.engine.resolve import Lookup, made_since
from lorac.graph.nodes import Node, Shape
from lorac.store.blobs import Store

PIECES_PER_WORKER = 4
"""Into how many pieces per worker a cpu node's items are cut: enough to balance, few enough to stay cheap."""
WAKE_SECONDS = 0.2
"""Waiting ends so often, so that Windows sees Ctrl-C."""


class Workers:
    """Used by the main thread; workers send messages. `cancelled` tells them to save what they have, and end."""

    def __init__(
        self,
        standing: Standing,
        kinds: Mapping[str, Kind],
        store: Store,
        listen: events.Listener,
        *,
        jobs: int,
        gang: bool,
    ) -> None:
        self._standing, self._kinds, self._store, self._listen = standing, kinds, store, listen
        self._gangs = Gangs(standing, kinds, gang)
        self._order = {node: number for number, node in enumerate(standing.graph.nodes)}
        self.jobs, self.cancelled = jobs, threading.Event()
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._pieces: list[Future[None]] = []
        self._waiting: list[Piece] = []
        self._busy = False  # whether the gpu pool has a piece

    def open(self) -> None:
        self._pieces, self._waiting, self._busy = [], [], False
        self.drain()  # what came after the end of an earlier run
        self._pools = {"cpu": ThreadPoolExecutor(self.jobs, "lorac-cpu"), "gpu": ThreadPoolExecutor(1, "lorac-gpu")}

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def end_early(self) -> None:
        """When `cancelled` is set: wait until all workers have saved what they have."""
        for piece in self._pieces:
            piece.cancel()
        while wait(self._pieces, timeout=WAKE_SECONDS).not_done:
            pass

    def send(self, message: Message) -> None:
        """What workers call."""
        self._queue.put(message)

    def receive(self) -> list[Message]:
        """Everything that has arrived; nothing after a while without any."""
        try:
            first = self._queue.get(timeout=WAKE_SECONDS)
        except queue.Empty:
            return []
        return [first, *self.drain()]

    def drain(self) -> list[Message]:
        messages = []
        while not self._queue.empty():
            messages.append(self._queue.get())
        return messages

    def submit(self, node: Node, look: Lookup, todo: Sequence[int]) -> None:
        """Give missing items to workers; of a chain the next one, because later keys need its outputs."""
        kind, progress = self._kinds[node.kind], self._standing.nodes[node]
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
            self._add(Piece(self._order[node], piece[0], node, look, self._work(node, look, piece)))

    def _work(self, node: Node, look: Lookup, piece: Sequence[int]) -> Work:
        key = look.item_keys[piece[0]]

        def send(body: Body) -> None:
            self.send(Message(node, look, body))

        return Work(
            params=node.params,
            hints=node.hints,
            items=[look.items[index] for index in piece],
            total=look.total,
            shared=look.shared,
            columns=look.columns,
            read=self._store.read,
            read_many=self._store.read_many,
            open=self._store.open,
            scratch=self._store.scratch(key),
            keep=partial(self._store.keep, key),
            kept=partial(self._store.kept, key),
            cancelled=self.cancelled,
            progress=lambda done, total, note: send(events.NodeProgress(node.name, node.kind, done, total, note)),
            measure=lambda measures: send(dict(measures)),
            warn=lambda text: send(events.Warned(node.name, text)),
            session=self._standing.nodes[node].session,
        )

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _add(self, piece: Piece) -> None:
        """Cpu pieces start at once, gpu pieces wait."""
        if self._kinds[piece.node.kind].POOL == "gpu":
            heappush(self._waiting, piece)
        else:
            self._start(piece)

    def skip_waiting(self) -> None:
        """After an error nothing that waits is begun."""
        for piece in self._waiting:
            if self._is_current(piece):
                self._standing.nodes[piece.node].stop(State.SKIPPED)
        self._waiting = []

    def start_waiting(self) -> None:
        """Give the free gpu pool the first piece that waits: by now those that the last one led to wait too.

        Links that another chain has made in the meantime are found, and what follows them waits before any is begun.
        """
        if self._busy or self._found_by_now():
            return
        held = []
        while self._waiting and not self._busy:
            piece = heappop(self._waiting)
            if not self._is_current(piece):
                continue  # its node was set back, and begins again
            if self._gangs.awaited(piece):
                held.append(piece)
            else:
                self._start_gpu(piece)
        if held and not self._busy and not self._others_run(held):
            self._start_gpu(held.pop(0))  # those that it waits for wait for it
        for piece in held:
            heappush(self._waiting, piece)

    def take_waiting(self, look: Lookup) -> Work | None:
        """What waits of this try of a node, which then no longer waits."""
        found = next((piece for piece in self._waiting if piece.look is look), None)
        if found is None:
            return None
        self._waiting.remove(found)
        heapify(self._waiting)
        return found.work

    def gpu_is_free(self) -> None:
        self._busy = False

    def _is_current(self, piece: Piece) -> bool:
        return self._standing.is_current(piece.node, piece.look)

    def _others_run(self, held: Sequence[Piece]) -> bool:
        nodes = {piece.node for piece in held}
        return any(node not in nodes for node in self._standing.running())

    def _found_by_now(self) -> bool:
        """Whether links that wait have been made; their nodes are told that they are."""
        current = [piece for piece in self._waiting if self._is_current(piece)]
        links = [(piece, kind) for piece in current if (kind := self._kinds[piece.node.kind]).SHAPE is Shape.CHAIN]
        made = [piece for piece, kind in links if made_since(piece.look, piece.first_item, kind, self._store)]
        for piece in made:
            self.send(Message(piece.node, piece.look, Ended(None)))
        self._waiting = [piece for piece in current if piece not in made]
        heapify(self._waiting)
        return bool(made)

    def _start_gpu(self, piece: Piece) -> None:
        """Run a piece, with others that wait if it can have a gang."""
        self._busy = True
        kind, gang = self._kinds[piece.node.kind], self._gangs.members(piece, self._waiting)
        if len(gang) < 2 or not isinstance(kind, Ganging):
            self._start(piece)
            return
        self._waiting = [other for other in self._waiting if other not in gang]
        heapify(self._waiting)
        for member in gang:
            self._announce(member)
        self._listen(events.GangStarted([member.node.name for member in gang], kind.NAME))
        self._pieces.append(self._pools["gpu"].submit(run_gang, kind, gang, self.send))

    def _start(self, piece: Piece) -> None:
        kind = self._kinds[piece.node.kind]
        self._announce(piece)
        self._pieces.append(self._pools[kind.POOL].submit(run_piece, kind, piece, self.send))

    def _announce(self, piece: Piece) -> None:
        node, progress = piece.node, self._standing.nodes[piece.node]
        if not progress.started:
            progress.started = time.perf_counter()
            self._listen(events.NodeStarted(node.name, node.kind, len(piece.look.missing()), piece.look.total))
