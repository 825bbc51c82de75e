"""What a build puts into the store: finished items, whole nodes, and what `lorac why` reads of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import islice

from lorac.digest import split
from lorac.engine.pieces import Message
from lorac.engine.progress import Progress, Standing
from lorac.engine.protocol import Kind, Made
from lorac.engine.resolve import Lookup, Result, numbers
from lorac.graph.nodes import Node, Shape
from lorac.store.blobs import Store
from lorac.store.ledger import Last


class Keeper:
    """The main thread's way into the store."""

    def __init__(self, standing: Standing, kinds: Mapping[str, Kind], store: Store) -> None:
        self._standing, self._kinds, self._store = standing, kinds, store
        self._build = 0

    def keep(self, messages: Iterable[Message]) -> None:
        """Commit finished items: blobs first, then, in the same transaction, the traces that name them.

        Items of an earlier try of a node count too: their keys say from what they were made.
        """
        made = [(message.node, message.look, message.body) for message in messages if isinstance(message.body, Made)]
        if not made:
            return
        with self._store.ledger.transaction():
            values = (item.outputs[output] for node, _, item in made for output in self._kinds[node.kind].OUTPUTS)
            digests = iter(self._store.put(values))
            for node, look, item in made:
                kind = self._kinds[node.kind]
                self._record(self._standing.nodes[node], kind, look, item, b"".join(islice(digests, len(kind.OUTPUTS))))

    def _record(self, progress: Progress, kind: Kind, look: Lookup, item: Made, outputs: bytes) -> None:
        if kind.SHAPE is Shape.LIST and item.index == len(look.found):
            look.found.append(None)
        if kind.SHAPE is Shape.EACH:
            look.fill(item.index, outputs)
        else:
            look.found[item.index] = outputs
        progress.ran += 1
        if kind.SHAPE in (Shape.EACH, Shape.CHAIN):
            seconds = (time.perf_counter() - progress.started) / progress.ran
            self._store.ledger.record(look.item_keys[item.index], kind.NAME, outputs, seconds, progress.measures)

    def conclude(self, kind: Kind, look: Lookup, progress: Progress) -> Result:
        """Every item is there: make the node's columns, and drop what its actions kept for another try."""
        rows = [split(outputs) for outputs in look.found if outputs is not None]
        with self._store.ledger.transaction():
            if kind.SHAPE is Shape.ONE:
                outputs, names = rows[0], []
            else:
                outputs = self._store.put(b"".join(column) for column in zip(*rows, strict=True))
                names = numbers(len(rows)) if kind.SHAPE is Shape.LIST else [item.name for item in look.items]
            self._store.ledger.record(look.key, kind.NAME, b"".join(outputs), progress.seconds, progress.measures)
        self._store.drop_scratch(look.item_keys)
        return Result(dict(zip(kind.OUTPUTS, outputs, strict=True)), names)

    def remember(self, node: Node, look: Lookup, ran: int, total: int) -> None:
        """Keep the manifest of this build and of the one before it, when they differ: `lorac why` reads them."""
        ledger = self._store.ledger
        for name in self._standing.graph.names[node]:
            last = ledger.last(name)
            changed = last is None or last.manifest.fields != look.manifest.fields
            if not changed and not ran:
                continue
            self._build = self._build or ledger.new_build()
            previous = None if last is None else last.manifest if changed else last.previous
            with ledger.transaction():
                ledger.put_last(name, Last(self._build, ran, total, look.manifest, previous))
