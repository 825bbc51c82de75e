"""Bytes that the store has lost are made again: the nodes that promised them are set back to WAITING.

Workers may still be busy with what they were given before; so every message carries the look-up that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lorac.digest import Digest, split
from lorac.engine import events
from lorac.engine.progress import Standing, State
from lorac.engine.resolve import Result
from lorac.errors import StoreError
from lorac.graph.nodes import Node
from lorac.store.blobs import Store

MAX_REPAIRS = 10
"""How often one node may find its inputs damaged in one build before the disk is blamed."""


class Repair:
    """Sets nodes back. Raises StoreError where that does not help."""

    def __init__(self, standing: Standing, store: Store, listen: events.Listener) -> None:
        self._standing, self._store, self._listen = standing, store, listen

    def inputs_of(self, node: Node, lost: set[Digest]) -> None:
        """An input's bytes are gone or damaged: set back the nodes that promised them, and let this one wait."""
        self._count(node)
        self._standing.nodes[node].reset()
        self._forget(lost)
        for source in {source.node: None for source in node.inputs.values()}:
            self._set_back(source, lost)

    def ensure(self, values: Mapping[Node, Iterable[Digest]]) -> bool:
        """Whether the store has these outputs of these nodes intact; the nodes of lost ones are set back."""
        damaged = {node: lost for node, digests in values.items() if (lost := self._store.damaged(digests))}
        for node, lost in damaged.items():
            self._count(node)
            self._forget(lost)
            self._set_back(node, lost)
        return not damaged

    def replaced(self, node: Node, result: Result) -> None:
        """The node has its result again. If it is another than the lost one, what was made of that is made again."""
        standing = self._standing
        lost, standing.nodes[node].lost = standing.nodes[node].lost, None
        if lost is None or lost == result:
            return
        stale = {node}
        for later in standing.graph.nodes:
            if any(source.node in stale for source in later.inputs.values()):
                stale.add(later)
                standing.results.pop(later, None)
                if standing.nodes[later].state in (State.RUNNING, State.DONE):
                    standing.nodes[later].reset()

    def _count(self, node: Node) -> None:
        progress = self._standing.nodes[node]
        progress.repairs += 1
        if progress.repairs > MAX_REPAIRS:
            raise StoreError(f"{self._store.root}: blobs vanish while they are used; is the disk failing?")

    def _forget(self, lost: set[Digest]) -> None:
        """Drop every trace that promises lost bytes: those of items, also of a chain that reads what it made itself."""
        with self._store.ledger.transaction():
            self._store.ledger.forget((), lost)

    def _set_back(self, node: Node, lost: set[Digest]) -> None:
        """Forget the trace of this node, if it leads to lost bytes, so that they are made again."""
        progress = self._standing.nodes[node]
        if progress.state is not State.DONE:
            return  # it is being made again already
        damaged = self._damage(self._standing.results[node], lost)
        if not damaged:
            return
        assert progress.look is not None
        self._listen(events.Warned(node.name, "stored bytes are missing or damaged; they are made again"))
        with self._store.ledger.transaction():
            self._store.ledger.forget([progress.look.key], damaged)
        progress.lost = self._standing.results.pop(node)
        progress.reset()

    def _damage(self, result: Result, lost: set[Digest]) -> set[Digest]:
        """Which lost bytes a result leads to. All its columns are checked, so that one repair is enough for all."""
        columns = set(result.outputs.values()) - self._standing.outside
        damaged = columns & lost | self._store.damaged(columns if result.names else ())
        if result.names:
            for column in columns - damaged:
                damaged |= set(split(self._store.read(column))) & lost
        return damaged
