"""The gang pass: which nodes may be made in one go, by what is known before anything is.

A gang is a way of running nodes, and no node: keys and results are those of nodes that are made one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from lorac.graph.nodes import Graph, Node


def gangs(graph: Graph, group: Callable[[Node], Hashable | None]) -> dict[Node, list[Node]]:
    """For each node of which `group` says something, the nodes of the same group, itself among them, in order.

    No node of a gang comes after another of it: it would wait for itself.
    """
    gang_of: dict[Node, list[Node]] = {}
    open_gangs: dict[Hashable, list[list[Node]]] = {}
    behind: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        sources = {source.node for source in node.inputs.values()}
        behind[node] = sources.union(*(behind[source] for source in sources))
        key = group(node)
        if key is None:
            continue
        found = open_gangs.setdefault(key, [])
        gang = next((gang for gang in found if not behind[node].intersection(gang)), None)
        if gang is None:
            found.append(gang := [])
        gang.append(node)
        gang_of[node] = gang
    return gang_of
