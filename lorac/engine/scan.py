"""Looking at the user's files, once per build: the only nodes that read anything but the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from lorac.digest import Digest, Manifest, digest
from lorac.engine.protocol import Scanner
from lorac.engine.resolve import Lookup, Result
from lorac.graph.nodes import Node, Shape
from lorac.store.blobs import Store
from lorac.store.statcache import file_digests


def scan(node: Node, scanner: Scanner, store: Store, *, rewrite: bool = False) -> tuple[Result, Lookup]:
    """Run a scanner. Its key is what it found: scanning again is how we learn whether anything changed.

    `rewrite` puts its blobs into the store even if they seem to be there: something was lost.
    """
    names, columns, blobs = scanner.scan(node.params, node.hints, partial(file_digests, store))
    if scanner.SHAPE is Shape.ONE:
        result = Result({output: columns[output][0] for output in scanner.OUTPUTS})
    else:
        joined = {output: b"".join(columns[output]) for output in scanner.OUTPUTS}
        result = _stored(store, joined, blobs, names, scanner.OUTPUTS, rewrite)
    manifest = Manifest()
    manifest.field("kind", scanner.NAME)
    manifest.field("version", scanner.VERSION)
    manifest.field("params", node.params)
    for output in scanner.OUTPUTS:
        manifest.field(f"found {output}", result.outputs[output])
    key = manifest.key()
    return result, Lookup(node, manifest, key, key, [], {}, {}, result=result)


def _stored(
    store: Store,
    joined: dict[str, bytes],
    blobs: Mapping[Digest, bytes],
    names: Sequence[str],
    outputs: Sequence[str],
    rewrite: bool,
) -> Result:
    """The columns as blobs, written only when they are new, so that a null build writes nothing."""
    digests = {output: digest(joined[output]) for output in outputs}
    if rewrite or store.missing(digests.values()):
        new = blobs.keys() if rewrite else store.missing(blobs)
        with store.ledger.transaction():
            store.put([*(blobs[value] for value in new), *joined.values()])
    return Result(digests, names)
