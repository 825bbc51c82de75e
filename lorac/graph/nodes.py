"""The build graph: nodes hold kinds and settings; the pictures they work on live in columns, not in objects.

A node's `shape` says how often its kind runs:

    ONE     once, giving one digest per output                                      weights, report
    LIST    once, giving a column (a list of digests) per output                    source, schedule
    EACH    once per item of its EACH inputs, giving a column per output            image, caption, latent
    CHAIN   the same, but item k also gets the outputs of item k-1                  train
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from lorac.digest import Manifest, Value


class Shape(Enum):
    ONE = "one"
    LIST = "list"
    EACH = "each"
    CHAIN = "chain"


class Take(Enum):
    """What a node takes of an output of another node."""

    WHOLE = "whole"
    """The one digest, or every digest of the column."""
    EACH = "each"
    """Item by item: this node's item i gets item i."""
    FIRST = "first"
    LAST = "last"
    """One item of the column."""


@dataclass(frozen=True)
class Input:
    """One port of a node: where its value comes from.

    optional: after a failure, and with `-k`, the node is made without this port and not skipped; a node that could do
    with none of its inputs is. Its key then has nothing of the port, so it is made again when the value is there.
    """

    node: Node
    output: str
    take: Take = Take.WHOLE
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Node:
    """One node. Two nodes with equal `identity` are one node: see `Graph.add`.

    name: for people, `recipe:kind` or `recipe:kind[3]`. params: the settings that its key contains. hints: settings
    that must not change the result (where to look for a file, a device). items: settings per item, for an EACH node
    that is fed by the recipe and not by another node (one per sample prompt).
    """

    name: str
    kind: str
    params: Mapping[str, Value]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    items: tuple[Mapping[str, Value], ...] = ()
    hints: Mapping[str, Value] = field(default_factory=dict)

    def identity(self, number: Mapping[Node, int]) -> bytes:
        """What makes it this node and no other, given the numbers of the nodes before it."""
        manifest = Manifest()
        manifest.field("kind", self.kind)
        manifest.field("params", self.params)
        manifest.field("hints", self.hints)
        manifest.field("items", self.items)
        for port, source in self.inputs.items():
            manifest.field(f"input.{port}", (number[source.node], source.output, source.take.value, source.optional))
        return manifest.key()


@dataclass(frozen=True)
class Output:
    """A file the user gets: `file` is its name; `{n}` in it becomes the item's number, from 1, times `every`."""

    recipe: str
    file: str
    value: Input
    every: int = 1


class Graph:
    """Nodes in dependency order, and the outputs asked for."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.outputs: list[Output] = []
        self.names: dict[Node, list[str]] = {}
        """Every name of a node: recipes that share it each have one."""
        self._numbers: dict[Node, int] = {}
        self._known: dict[bytes, Node] = {}
        self._named: dict[str, bytes] = {}

    def add(self, node: Node) -> Node:
        """Add a node, or return the equal one that is there already: equal work is one node across all recipes.

        A name that another node has, as a folder called `off` would make, gets a number: names are what people and
        `why` tell nodes by.
        """
        identity = node.identity(self._numbers)
        known, name = self._known.get(identity), self._free_name(node.name, identity)
        if known is None:
            known = self._known[identity] = node if name == node.name else replace(node, name=name)
            self._numbers[known] = len(self.nodes)
            self.nodes.append(known)
        names = self.names.setdefault(known, [])
        if name not in names:
            names.append(name)
        return known

    def _free_name(self, wanted: str, identity: bytes) -> str:
        name, number = wanted, 1
        while self._named.setdefault(name, identity) != identity:
            number += 1
            name = f"{wanted}-{number}"
        return name

    def hint(self, kind: str, hints: Mapping[str, Value]) -> None:
        """Tell all nodes of a kind more than they know; it changes no key, nor which nodes are equal."""
        for node in self.nodes:
            if node.kind == kind:
                object.__setattr__(node, "hints", {**node.hints, **hints})

    def part(self, wanted: Callable[[Node], bool]) -> Graph:
        """The nodes that `wanted` picks and those before them, without any outputs."""
        needed: set[Node] = set()
        for node in reversed(self.nodes):
            if wanted(node) or node in needed:
                needed |= {node, *(source.node for source in node.inputs.values())}
        part = Graph()
        for node in self.nodes:
            if node in needed:
                part.add(node)
                part.names[node] = self.names[node]
        return part

    def of_recipe(self, recipe: str) -> Iterator[Node]:
        """The nodes that a recipe uses, in dependency order."""
        return (node for node in self.nodes if any(name.startswith(f"{recipe}:") for name in self.names[node]))

    def name(self, node: Node, recipe: str) -> str:
        """The node's name in a recipe that uses it: `riho_head:caption[riho_head]`."""
        return next(name for name in self.names[node] if name.startswith(f"{recipe}:"))

    def label(self, node: Node, recipe: str) -> str:
        """The name without the recipe's: `caption[riho_head]`."""
        return self.name(node, recipe).removeprefix(f"{recipe}:")
