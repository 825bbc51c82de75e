"""Which pieces of work are run together: of those that the graph lets go together, those that turn out to be alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from lorac.engine.pieces import Piece
from lorac.engine.progress import Standing, State
from lorac.engine.protocol import Ganging, Kind
from lorac.graph.gang import gangs
from lorac.graph.nodes import Node
from lorac.store.blobs import BlobMissing


class Gangs:
    """Nobody is in one where `enabled` is false."""

    def __init__(self, standing: Standing, kinds: Mapping[str, Kind], enabled: bool) -> None:
        self._standing, self._kinds = standing, kinds
        self._of = gangs(standing.graph, self._group) if enabled else {}

    def _group(self, node: Node) -> Hashable | None:
        kind = self._kinds.get(node.kind)
        return kind.gang_group(node) if isinstance(kind, Ganging) else None

    def awaited(self, piece: Piece) -> bool:
        """Whether nodes that may go together with this one are still to come."""
        nodes = self._of.get(piece.node, ())
        return any(self._standing.nodes[node].state is State.WAITING for node in nodes)

    def members(self, piece: Piece, waiting: Sequence[Piece]) -> list[Piece]:
        """The piece and those of `waiting` that are run with it: of equal gangs as many as there can be."""
        kind, nodes = self._kinds[piece.node.kind], self._of.get(piece.node, [])
        if len(nodes) < 2 or not isinstance(kind, Ganging):
            return [piece]
        may = sorted(p for p in waiting if p.node in nodes and self._standing.is_current(p.node, p.look))
        try:
            key, links = kind.gang_key(piece.work), {piece.item_key: piece}
            for other in may:
                if kind.gang_key(other.work) == key:
                    # Equal links of two recipes are made by one: their scratch folder is the same. The other waits,
                    # and finds them (see `Workers.start_waiting`).
                    links.setdefault(other.item_key, other)
            alike = list(links.values())
            rounds = -(-len(alike) // kind.gang_limit([other.work for other in alike]))
        except BlobMissing:
            return [piece]  # who runs into it has it made again
        return alike[: -(-len(alike) // rounds)]
