"""Why something runs, or ran: the difference between two manifests of the same target, in words.

The manifests are the ones that the keys are made of, so what is printed here is the whole reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from lorac.digest import Digest, Manifest
from lorac.engine.forecast import Forecast, Outlook
from lorac.engine.resolve import split
from lorac.graph.nodes import Graph, Node
from lorac.store.blobs import BlobMissing, Store

SHOWN = 5
"""How many files or settings one line names."""


def why(graph: Graph, recipe: str, kind: str | None, forecasts: Mapping[Node, Forecast], store: Store) -> Iterator[str]:
    """Lines that explain the next build of `recipe` if it has something to do, and else the last one that had."""
    nodes = [node for node in graph.of_recipe(recipe) if kind in (None, node.kind, _label(graph, node, recipe))]
    pending = any(forecasts[node].outlook is not Outlook.FOUND for node in graph.of_recipe(recipe))
    if pending:
        yield f"{recipe}: the next build has work to do"
        for node in nodes:
            yield from _pending(graph, node, recipe, forecasts[node], store)
        return
    lasts = {node: last for node in nodes if (last := store.ledger.last(_name(graph, node, recipe))) is not None}
    if not lasts:
        yield f"{recipe}: everything was found; it has not been built under this name yet"
        return
    newest = max(last.build for last in lasts.values())
    yield f"{recipe}: up to date; what the last build with changes (number {newest}) did, and why:"
    for node, last in lasts.items():
        if last.build != newest:
            continue
        amount = "read" if not last.ran and last.total else f"{last.ran} of {last.total} made"
        if last.previous is not None and not last.ran and not node.kind == "source":
            amount = f"found, {last.total} of {last.total}"
        yield f"  {_label(graph, node, recipe):<24} {amount}"
        for reason in reasons(last.manifest, last.previous, store):
            yield f"      {reason}"


def _pending(graph: Graph, node: Node, recipe: str, cast: Forecast, store: Store) -> Iterator[str]:
    label = _label(graph, node, recipe)
    last = store.ledger.last(_name(graph, node, recipe))
    if cast.outlook is Outlook.MAY_RUN:
        yield f"  {label:<24} may run, if what it reads comes out different"
    elif cast.look is not None and (last is None or last.manifest.fields != cast.look.manifest.fields):
        amount = "changed" if cast.outlook is Outlook.FOUND else f"{cast.todo} of {cast.total} will be made"
        yield f"  {label:<24} {amount}"
        for reason in reasons(cast.look.manifest, last.manifest if last else None, store):
            yield f"      {reason}"
    elif cast.outlook is Outlook.RUNS:
        yield f"  {label:<24} {cast.todo} of {cast.total} will be made: an earlier build did not finish them"


def reasons(new: Manifest, old: Manifest | None, store: Store) -> Iterator[str]:
    """The difference of two manifests, one line for each cause."""
    if old is None:
        yield "built for the first time"
        return
    difference = new.difference(old)
    if any(name.startswith("found ") for name, _, _ in difference):
        yield from _files(dict(old.fields), dict(new.fields), store)
    for name, before, after in difference:
        area, _, field = name.partition(" ")
        if area == "found":
            continue
        if area == "input":
            yield f"input {field} changed"
        elif area in ("each", "column"):
            yield f"input {field} changed" + _count(before, after, store)
        elif name == "version":
            yield f"lorac's code for this kind changed: version {before} → {after}"
        else:
            yield f"{name.removeprefix('params.')}: {_shown(before)} → {_shown(after)}"


def _files(old: Mapping[str, str], new: Mapping[str, str], store: Store) -> Iterator[str]:
    """What happened to the files of a source."""
    try:
        before, after = _listing(old, store), _listing(new, store)
    except (BlobMissing, KeyError):
        yield "files changed"
        return
    verbs: dict[str, list[str]] = {}
    for name in sorted({*before, *after}):
        if name not in before:
            verbs.setdefault("added", []).append(name)
        elif name not in after:
            verbs.setdefault("removed", []).append(name)
        else:
            for what, was, now in zip(("picture", "caption"), before[name], after[name], strict=True):
                if was != now:
                    verbs.setdefault(f"{what} changed", []).append(name)
    for verb, names in verbs.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{verb}: {', '.join(names[:SHOWN])}{more}"


def _listing(fields: Mapping[str, str], store: Store) -> dict[str, tuple[Digest, Digest]]:
    """name -> (picture, caption) of a source as a manifest recorded it."""
    names, pictures, captions = (split(store.read(_digest(fields[f"found {c}"]))) for c in ("name", "picture", "caption"))
    texts = store.read_many(names)
    return {
        texts[name].decode("utf-8", "replace"): (picture, caption)
        for name, picture, caption in zip(names, pictures, captions, strict=True)
    }


def _count(before: str | None, after: str | None, store: Store) -> str:
    """How many items of a column differ, when both columns are still there."""
    if before is None or after is None:
        return ""
    try:
        old, new = store.read(_digest(before)), store.read(_digest(after))
    except BlobMissing:
        return ""
    differing = sum(a != b for a, b in zip_longest(split(old), split(new)))
    return f" ({differing} of {len(new) // 32})"


def _digest(text: str) -> Digest:
    return bytes.fromhex(text.removeprefix("sha256:"))


def _shown(text: str | None) -> str:
    if text is None:
        return "(absent)"
    if text.startswith(("0x", "-0x")):
        return f"{float.fromhex(text):g}"
    return text


def _name(graph: Graph, node: Node, recipe: str) -> str:
    return next(name for name in graph.names[node] if name.startswith(f"{recipe}:"))


def _label(graph: Graph, node: Node, recipe: str) -> str:
    return _name(graph, node, recipe).partition(":")[2]
