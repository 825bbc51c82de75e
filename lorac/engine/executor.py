"""Runs what is not already built.

The main thread alone decides, looks up and stores; worker threads only run kinds and put what they make on a queue.
A node goes WAITING → RUNNING → DONE, or FAILED, or SKIPPED because something before it failed. Kinds of the "cpu" pool
run in several pieces at once, kinds of the "gpu" pool (all that use torch) one at a time, in the order of the graph: of
many recipes the first is trained, exported and drawn before the second begins.

What a kind has yielded is committed before anything else happens to it, so a crash, an error or Ctrl-C loses at most
the item in work; an action that was begun keeps its `scratch` folder for the next try.

Where to look: `progress` what is known of the nodes, `workers` the threads, `gangs` who runs together, `keeper` what is
stored, `failures` what went wrong, `repair` what happens when the store has lost bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from lorac.digest import Digest
from lorac.engine import events
from lorac.engine.failures import Failures
from lorac.engine.keeper import Keeper
from lorac.engine.pieces import Ended, Free
from lorac.engine.progress import Standing, State
from lorac.engine.protocol import Failed, Kind, Scanner
from lorac.engine.repair import Repair
from lorac.engine.resolve import BlobMissing, Lookup, Result, follow_chain, look_up, needed
from lorac.engine.scan import scan
from lorac.engine.workers import Workers
from lorac.errors import Interrupted, LoracError, StoreError
from lorac.graph.nodes import Graph, Input, Node, Shape
from lorac.store.blobs import Store


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
        self.keep_going = keep_going
        self.standing = Standing(graph)
        self.nodes, self.results = self.standing.nodes, self.standing.results
        self._keeper = Keeper(self.standing, kinds, store)
        self._repair = Repair(self.standing, store, self._tell)
        self._failures = Failures(self.standing, store, self._tell)
        self._workers = Workers(self.standing, kinds, store, self._tell, jobs=jobs, gang=gang)

    # -- the story ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[Node, Result]:
        """Bring every node of the graph up to date."""
        self._workers.open()
        try:
            while not self.standing.settled():
                self._start_ready()
                if self._stopping():
                    self._workers.skip_waiting()
                self._workers.start_waiting()
                if self.standing.running():
                    self._receive()
        except KeyboardInterrupt:
            self._wind_down("interrupted: saving what is done (Ctrl-C again to stop at once)")
            raise Interrupted("interrupted; the next build goes on from here") from None
        except BaseException:
            self._wind_down()
            raise
        finally:
            self._workers.close()
        self._failures.raise_them()
        return self.results

    def ensure(self, values: Mapping[Node, Iterable[Digest]]) -> bool:
        """Whether the store has these outputs of these nodes intact; the nodes of lost ones are set back for `run`."""
        return self._repair.ensure(values)

    def _tell(self, event: events.Event) -> None:
        self.listen(event)

    def _start_ready(self) -> None:
        for node in self.graph.nodes:
            if self.nodes[node].state is not State.WAITING:
                continue
            before = {source: self.nodes[source.node].state for source in node.inputs.values()}
            lost = [source for source, state in before.items() if state in (State.FAILED, State.SKIPPED)]
            if lost and (len(lost) == len(before) or not all(self._can_do_without(source) for source in lost)):
                self.nodes[node].stop(State.SKIPPED)
            elif all(state is State.DONE for source, state in before.items() if source not in lost):
                self._advance(node)

    def _can_do_without(self, source: Input) -> bool:
        return source.optional and self.keep_going

    def _stopping(self) -> bool:
        """After an error only cheap work goes on, so that all bad files are found at once."""
        return bool(self._failures) and not self.keep_going

    # -- a node begins -----------------------------------------------------------------------------------------------

    def _advance(self, node: Node) -> None:
        """All inputs are there: find the node's result, or start making it."""
        if node.kind in self.scanners:
            self._scan(node)
            return
        progress, kind = self.nodes[node], self.kinds[node.kind]
        if self._stopping() and kind.POOL == "gpu":
            progress.stop(State.SKIPPED)
            return
        try:
            look = look_up(node, kind, self.results, self.store)
        except BlobMissing as missing:
            self._set_back(node, {missing.digest})
            return
        if look.result is None and look.missing():
            inputs = needed(look) - self.standing.outside
            lost = self.store.damaged(inputs) if progress.repairs else self.store.missing(inputs)
            if lost:
                self._set_back(node, lost)
                return
        progress.look = look
        if look.result is None and look.missing():
            progress.state, progress.started = State.RUNNING, 0.0
            self._workers.submit(node, look, look.missing())
        else:
            self._finish(node, look)

    def _scan(self, node: Node) -> None:
        progress, scanner = self.nodes[node], self.scanners[node.kind]
        started = time.perf_counter()
        try:
            result, progress.look = scan(node, scanner, self.store, rewrite=progress.lost is not None)
        except LoracError as error:
            self._failures.of_node(node, error)
            return
        if not scanner.INGESTS:
            self.standing.outside |= set(result.outputs.values())
        progress.seconds = time.perf_counter() - started
        self._done(node, result)
        self._keeper.remember(node, progress.look, 0, len(result.names) or 1)

    # -- what workers send -------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take everything that has arrived, store it in one transaction, then act on it."""
        messages = self._workers.receive()
        self._keeper.keep(messages)
        for message in messages:
            node, look = message.node, message.look
            current = self.standing.is_current(node, look)
            match message.body:
                case Failed() if current:
                    self._failures.of_item(node, message.body)
                case Ended(error, inbox):
                    if current:
                        self._piece_ended(node, look, error)
                    if inbox is not None:
                        inbox.put(self._workers.take_waiting(look))
                case Free():
                    self._workers.gpu_is_free()
                case dict():
                    self.nodes[node].measured(message.body)
                case events.NodeProgress() | events.Warned():
                    self.listen(message.body)

    def _piece_ended(self, node: Node, look: Lookup, error: BaseException | None) -> None:
        progress, kind = self.nodes[node], self.kinds[node.kind]
        if progress.state is not State.RUNNING:
            return
        if isinstance(error, BlobMissing):
            self._set_back(node, {error.digest})
            return
        if error is not None:
            self._failures.of_node(node, error)
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
                self._workers.submit(node, look, sorted(twins))
            else:
                progress.stop(State.FAILED)
            return
        if kind.SHAPE is Shape.CHAIN:
            follow_chain(look, kind, self.store)
        if not look.missing():
            self._finish(node, look)
        elif self._stopping():
            progress.stop(State.SKIPPED)
        else:
            self._workers.submit(node, look, look.missing())

    # -- endings -----------------------------------------------------------------------------------------------------

    def _finish(self, node: Node, look: Lookup) -> None:
        """Every item is there: make the node's columns, remember its trace, and say what it took."""
        progress, kind = self.nodes[node], self.kinds[node.kind]
        if look.result is None:
            progress.seconds = time.perf_counter() - progress.started if progress.started else 0.0
            look.result = self._keeper.conclude(kind, look, progress)
        progress.session = {}
        self._done(node, look.result)
        total = 1 if kind.SHAPE in (Shape.ONE, Shape.LIST) else look.total
        ran = min(progress.ran, total)
        self._keeper.remember(node, look, ran, total)
        self.listen(events.NodeFinished(node.name, node.kind, ran, total, progress.seconds, dict(progress.measures)))

    def _done(self, node: Node, result: Result) -> None:
        self.results[node], self.nodes[node].state = result, State.DONE
        self._repair.replaced(node, result)

    def _set_back(self, node: Node, lost: set[Digest]) -> None:
        """The node waits until what it lacks is made again."""
        try:
            self._repair.inputs_of(node, lost)
        except StoreError as error:
            self._failures.of_node(node, error)

    def _wind_down(self, warning: str = "") -> None:
        """Let the workers save what they have, and store what they made."""
        try:
            self._workers.cancelled.set()
            if warning:
                self.listen(events.Warned("", warning))
            self._workers.end_early()
            with suppress(StoreError):  # a full disk may be why we are here
                self._keeper.keep(self._workers.drain())
        except KeyboardInterrupt:
            os._exit(Interrupted.exit_code)  # a thread cannot be stopped, and the store survives this
