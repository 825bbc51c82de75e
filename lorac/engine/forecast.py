"""What a build would do, without doing it: `lorac build -n`, `lorac plan` and the first half of `lorac why`.

A node whose input is going to be made has no key yet. Whether it runs depends on whether that input comes out
different (cut-off), so the honest answer has three values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from lorac.engine.protocol import Kind, Scanner
from lorac.engine.resolve import BlobMissing, Lookup, Result, look_up
from lorac.engine.scan import scan
from lorac.graph.nodes import Graph, Node
from lorac.store.blobs import Store


class Outlook(Enum):
    FOUND = "found"
    RUNS = "will run"
    MAY_RUN = "may run"


@dataclass(frozen=True)
class Forecast:
    """`todo` of `total` items; both are 0 where nothing can be said yet."""

    outlook: Outlook
    todo: int = 0
    total: int = 0
    look: Lookup | None = None


def forecast(
    graph: Graph, kinds: Mapping[str, Kind], scanners: Mapping[str, Scanner], store: Store
) -> dict[Node, Forecast]:
    """The outlook of every node, in dependency order. Scans the sources; raises InputError for unusable files."""
    results: dict[Node, Result] = {}
    forecasts: dict[Node, Forecast] = {}
    for node in graph.nodes:
        if node.kind in scanners:
            results[node], look = scan(node, scanners[node.kind], store)
            forecasts[node] = Forecast(Outlook.FOUND, 0, len(results[node].names) or 1, look)
        elif any(source.node not in results for source in node.inputs.values()):
            forecasts[node] = Forecast(Outlook.MAY_RUN)
        else:
            forecasts[node] = _of_known(node, kinds[node.kind], results, store)
            look_found = forecasts[node].look
            if look_found is not None and look_found.result is not None:
                results[node] = look_found.result
    return forecasts


def _of_known(node: Node, kind: Kind, results: Mapping[Node, Result], store: Store) -> Forecast:
    try:
        look = look_up(node, kind, results, store)
    except BlobMissing:
        return Forecast(Outlook.MAY_RUN)
    if look.result is not None or not look.missing():
        return Forecast(Outlook.FOUND, 0, look.total, look)
    return Forecast(Outlook.RUNS, len(look.missing()), look.total, look)
