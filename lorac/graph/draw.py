"""The build graph as text for other programs: Graphviz, Mermaid, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable

from lorac.graph.nodes import Graph, Input, Node


def draw(graph: Graph, style: str) -> str:
    """`style` is "dot", "mermaid" or "json"."""
    return {"dot": _dot, "mermaid": _mermaid, "json": _json}[style](graph)


def by_kind(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """What each kind reads of other kinds, in alphabetical order, whatever the order of the nodes."""
    reads: dict[str, set[str]] = {}
    for node in nodes:
        reads.setdefault(node.kind, set()).update(kinds_of(node.inputs.values()) - {node.kind})
    return {kind: sorted(reads[kind]) for kind in sorted(reads)}


def kinds_of(inputs: Iterable[Input]) -> set[str]:
    """The kinds of the nodes that these inputs come from."""
    return {source.node.kind for source in inputs}


def _edges(graph: Graph) -> list[tuple[int, int, str]]:
    """(from, to, outputs) with the nodes' numbers; several outputs of one node are one edge."""
    number = {node: index for index, node in enumerate(graph.nodes)}
    edges: dict[tuple[int, int], dict[str, None]] = {}
    for node in graph.nodes:
        for source in node.inputs.values():
            edges.setdefault((number[source.node], number[node]), {})[source.output] = None
    return [(start, end, ", ".join(outputs)) for (start, end), outputs in edges.items()]


def _dot(graph: Graph) -> str:
    lines = ["digraph lorac {", "  rankdir = LR;", "  node [shape = box];"]
    lines += [f"  n{index} [label = {json.dumps(node.name)}];" for index, node in enumerate(graph.nodes)]
    lines += [f"  n{start} -> n{end} [label = {json.dumps(outputs)}];" for start, end, outputs in _edges(graph)]
    return "\n".join([*lines, "}"])


def _mermaid(graph: Graph) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', "#quot;") + '"'

    lines = ["flowchart LR"]
    lines += [f"  n{index}[{quoted(node.name)}]" for index, node in enumerate(graph.nodes)]
    lines += [f"  n{start} -->|{quoted(outputs)}| n{end}" for start, end, outputs in _edges(graph)]
    return "\n".join(lines)


def _json(graph: Graph) -> str:
    nodes = [
        {
            "names": graph.names[node],
            "kind": node.kind,
            "params": dict(node.params),
            "items": [dict(i) for i in node.items],
        }
        for node in graph.nodes
    ]
    edges = [{"from": start, "to": end, "outputs": outputs.split(", ")} for start, end, outputs in _edges(graph)]
    outputs = [
        {"recipe": o.recipe, "file": o.file, "node": graph.nodes.index(o.value.node), "output": o.value.output}
        for o in graph.outputs
    ]
    return json.dumps({"nodes": nodes, "edges": edges, "outputs": outputs}, indent=2, ensure_ascii=False)
