"""From the results of a node's inputs to its key, and from the key to what is already built.

Two levels of traces make a null build cheap and a small edit small. The node's own key covers all its items at once:
10,000 unchanged pictures are one look-up per kind. Only when that misses are the items' keys computed and looked up.

Keys are made of the digests of the inputs' *outputs*, so a change that does not change an output stops there (early
cut-off), and a reverted edit is found again at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorac.digest import Digest, Manifest, split
from lorac.engine.protocol import Item, Kind
from lorac.graph.nodes import Node, Shape, Take
from lorac.store.blobs import BlobMissing, Store

ENDS = {Take.FIRST: 0, Take.LAST: -1}
"""Which item of a column is taken."""


@dataclass(frozen=True)
class Result:
    """What a node gave: one digest per output; for columns it is the digest of the joined item digests.

    names: of the items, for people; empty for a node of shape ONE.
    """

    outputs: Mapping[str, Digest]
    names: Sequence[str] = ()

    def column(self, output: str, store: Store) -> list[Digest]:
        return split(store.read(self.outputs[output]))


@dataclass
class Lookup:
    """A node with all its inputs known.

    `result` is set when everything was found, and then nothing is listed. Otherwise `found[i]` holds the output digests
    of item i, or None, and `columns` what is in the columns that are taken whole.
    """

    node: Node
    manifest: Manifest
    key: Digest
    prefix: Digest
    items: list[Item]
    shared: dict[str, Digest]
    whole: dict[str, Digest]
    columns: dict[str, list[Digest]] = field(default_factory=dict)
    item_keys: list[Digest] = field(default_factory=list)
    found: list[bytes | None] = field(default_factory=list)
    result: Result | None = None
    _twins: dict[object, list[int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.items) if self.result is None else max(1, len(self.result.names))

    def missing(self) -> list[int]:
        """The items to make. Of items with one key that is the first: the others get what it gave (see `fill`)."""
        missing = (index for index, outputs in enumerate(self.found) if outputs is None)
        first: dict[object, int] = {}
        for index in missing:
            first.setdefault(self._key(index), index)
        return list(first.values())

    def fill(self, index: int, outputs: bytes) -> None:
        """An item is made, and with it every item that has its key."""
        for twin in self.twins(index):
            self.found[twin] = outputs

    def twins(self, index: int) -> list[int]:
        """The items with the key of this one, itself among them."""
        if not self._twins:
            for other in range(len(self.found)):
                self._twins.setdefault(self._key(other), []).append(other)
        return self._twins[self._key(index)]

    def _key(self, index: int) -> object:
        """The item's key, or, as long as not all keys are known, something that no other item has."""
        return self.item_keys[index] if len(self.item_keys) == len(self.found) else index


def look_up(node: Node, kind: Kind, results: Mapping[Node, Result], store: Store) -> Lookup:
    """Compute the node's key and find what is built. Raises BlobMissing when a column is gone."""
    manifest = Manifest()
    manifest.field("kind", kind.NAME)
    manifest.field("version", kind.VERSION)
    manifest.field("params", node.params)
    shared: dict[str, Digest] = {}
    whole: dict[str, Digest] = {}
    for port, source in node.inputs.items():
        if source.optional and source.node not in results:
            continue
        result = results[source.node]
        if source.take in ENDS:
            shared[port] = result.column(source.output, store)[ENDS[source.take]]
            manifest.field(f"input {port}", shared[port])
        elif source.take is Take.WHOLE:
            value = result.outputs[source.output]
            (whole if result.names else shared)[port] = value
            manifest.field(f"{'column' if result.names else 'input'} {port}", value)
    prefix = manifest.key()
    each = {port: source for port, source in node.inputs.items() if source.take is Take.EACH}
    for port, source in each.items():
        manifest.field(f"each {port}", results[source.node].outputs[source.output])
    for index, params in enumerate(node.items):
        manifest.field(f"item {index}", params)
    look = Lookup(node, manifest, manifest.key(), prefix, [], shared, whole)

    names = _names(node, kind, results)
    look.result = _known_result(look.key, kind, names, store)
    if look.result is not None:
        return look

    look.columns = {port: split(store.read(column)) for port, column in whole.items()}
    columns = {port: results[source.node].column(source.output, store) for port, source in each.items()}
    look.items = [
        Item(i, name, node.items[i] if node.items else {}, {port: column[i] for port, column in columns.items()})
        for i, name in enumerate(names or [""])
    ]
    if kind.SHAPE is Shape.EACH:
        look.item_keys = [item_key(prefix, item) for item in look.items]
        look.found = _known_items(look.item_keys, kind, store)
    elif kind.SHAPE is Shape.CHAIN:
        look.found = [None] * len(look.items)
        follow_chain(look, kind, store)
    else:
        look.item_keys, look.found = [look.key], [None]
    return look


def _known_result(key: Digest, kind: Kind, names: Sequence[str], store: Store) -> Result | None:
    """What the ledger says that the node gave. The blobs are not looked at: whoever needs them finds out."""
    action = store.ledger.action(key)
    if action is None or len(action.outputs) != 32 * len(kind.OUTPUTS):
        return None
    outputs = dict(zip(kind.OUTPUTS, action.digests(), strict=True))
    if kind.SHAPE is Shape.LIST:
        names = numbers(len(store.read(action.digests()[0])) // 32)
    return Result(outputs, names)


def _known_items(keys: Sequence[Digest], kind: Kind, store: Store) -> list[bytes | None]:
    """The output digests of the items that the ledger knows."""
    known = store.ledger.outputs(keys)
    size = 32 * len(kind.OUTPUTS)
    return [found if (found := known.get(key)) is not None and len(found) == size else None for key in keys]


def item_key(prefix: Digest, item: Item) -> Digest:
    """The key of one item: what the items share, then its own inputs in the order of their ports."""
    hasher = hashlib.sha256(prefix)
    for port in sorted(item.inputs):
        hasher.update(f"{len(port)}:{port}".encode() + item.inputs[port])
    if item.params:
        manifest = Manifest()
        manifest.field("params", item.params)
        hasher.update(manifest.key())
    return hasher.digest()


def link(item: Item, kind: Kind, previous: bytes) -> Item:
    """The item of a chain, given the output digests of the item before it."""
    before = {f"previous.{output}": value for output, value in zip(kind.OUTPUTS, split(previous), strict=True)}
    return Item(item.index, item.name, item.params, {**item.inputs, **before})


def follow_chain(look: Lookup, kind: Kind, store: Store) -> None:
    """Find the items of a chain up to the first that must be made; that one's key is then known, too."""
    while (index := len(look.item_keys)) < look.total:
        if index:
            previous = look.found[index - 1]
            if previous is None:
                return
            look.items[index] = link(look.items[index], kind, previous)
        look.item_keys.append(item_key(look.prefix, look.items[index]))
        look.found[index] = _known_items(look.item_keys[-1:], kind, store)[0]


def made_since(look: Lookup, index: int, kind: Kind, store: Store) -> bool:
    """Whether an item that was missing has been made by now, for another node; then it is found."""
    look.found[index] = _known_items([look.item_keys[index]], kind, store)[0]
    return look.found[index] is not None


def _names(node: Node, kind: Kind, results: Mapping[Node, Result]) -> list[str]:
    """The items' names for people: those of the first EACH input, or the numbers of the recipe's own items."""
    if kind.SHAPE in (Shape.ONE, Shape.LIST):
        return []
    if node.items:
        return numbers(len(node.items))
    source = next(source for source in node.inputs.values() if source.take is Take.EACH)
    return list(results[source.node].names)


def needed(look: Lookup) -> set[Digest]:
    """Every blob that making the missing items may read."""
    digests = set(look.shared.values())
    for column in look.columns.values():
        digests.update(column)
    for index in look.missing():
        digests.update(look.items[index].inputs.values())
    return digests


def numbers(count: int) -> list[str]:
    """Names of items that have no others: 1, 2, 3."""
    return [str(number) for number in range(1, count + 1)]


__all__ = ["BlobMissing", "Lookup", "Result", "follow_chain", "item_key", "look_up", "made_since", "needed", "numbers"]
