"""What a build would do, without doing it: `lorac build -n`, `lorac plan` and the first half of `lorac why`.

A node whose input is going to be made has no key yet. Whether it runs depends on whether that input comes out
different (cut-off), so the honest answer has three values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from lorac.engine.protocol import Kind, Scanner
from lorac.engine.resolve import BlobMissing, Lookup, Result, look_up
from lorac.engine.scan import scan
from lorac.engine.wording import padded, width
from lorac.errors import InputError, Problem
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
    problems: list[Problem] = []
    for node in graph.nodes:
        if node.kind in scanners:
            try:
                results[node], look = scan(node, scanners[node.kind], store)
            except InputError as error:
                problems += error.problems
                continue
            forecasts[node] = Forecast(Outlook.FOUND, 0, len(results[node].names) or 1, look)
        elif any(source.node not in results for source in node.inputs.values()):
            forecasts[node] = Forecast(Outlook.MAY_RUN)
        else:
            forecasts[node] = _of_known(node, kinds[node.kind], results, store)
            look_found = forecasts[node].look
            if look_found is not None and look_found.result is not None:
                results[node] = look_found.result
    if problems:
        raise InputError(problems)
    return forecasts


def listing(graph: Graph, recipes: Sequence[str], forecasts: Mapping[Node, Forecast]) -> Iterator[str]:
    """A line per node, below the first recipe that uses it, and what it comes to."""
    shown: set[Node] = set()
    for recipe in recipes:
        yield recipe
        labels = {node: graph.label(node, recipe) for node in graph.of_recipe(recipe) if node not in shown}
        columns = max(map(width, labels.values()), default=0)
        yield from (f"  {padded(label, columns)}  {_outlook(forecasts[node])}" for node, label in labels.items())
        shared = sum(node in shown for node in graph.of_recipe(recipe))
        if shared:
            yield f"  and {shared} nodes that are listed above"
        shown |= labels.keys()
    counts = Counter(cast.outlook for cast in forecasts.values())
    yield ", ".join(f"{counts[outlook]} {outlook.value}" for outlook in Outlook if counts[outlook])


def summary(graph: Graph, recipe: str, forecasts: Mapping[Node, Forecast]) -> Iterator[str]:
    """The same for one recipe, a line per outlook."""
    labels: dict[Outlook, list[str]] = {}
    for node in graph.of_recipe(recipe):
        cast = forecasts[node]
        amount = f" ({cast.todo} of {cast.total})" if cast.todo and cast.total > 1 else ""
        labels.setdefault(cast.outlook, []).append(graph.label(node, recipe) + amount)
    if labels.keys() == {Outlook.FOUND}:
        yield "  next build      finds everything"
        return
    for outlook in Outlook:
        if outlook in labels:
            yield f"  {outlook.value:<15} {', '.join(labels[outlook])}"


def _outlook(cast: Forecast) -> str:
    """`found 13`, `will run 1 of 13`, `may run`."""
    if cast.outlook is Outlook.MAY_RUN:
        return str(cast.outlook.value)
    amount = f"{cast.todo} of {cast.total}" if cast.todo else f"{cast.total}"
    return f"{cast.outlook.value:<9} {amount:>6}"


def _of_known(node: Node, kind: Kind, results: Mapping[Node, Result], store: Store) -> Forecast:
    try:
        look = look_up(node, kind, results, store)
    except BlobMissing:
        return Forecast(Outlook.MAY_RUN)
    if look.result is not None or not look.missing():
        return Forecast(Outlook.FOUND, 0, look.total, look)
    return Forecast(Outlook.RUNS, len(look.missing()), look.total, look)
