"""Why something runs, or ran: the difference between two manifests of the same target, in words.

The manifests are the ones that the keys are made of, so what is printed here is the whole reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lorac.digest import Digest, Manifest, split
from lorac.engine.forecast import Forecast, Outlook
from lorac.engine.wording import differences, listed, padded, shown, width
from lorac.graph.nodes import Graph, Node
from lorac.store.blobs import BlobMissing, Store
from lorac.store.ledger import Last

SCANNED = ("source", "base", "start", "tagger", "vocabulary")
"""Kinds that are read and not made."""
OUTPUTS = {
    "raw": "text as written",
    "name": "file names",
    "slice": "steps",
    "summary": "counts",
    "validation": "held-out samples",
    "unet": "U-Net",
    "vae": "VAE",
    "text": "text encoder",
    "lora": "LoRA",
    "facts": "settings",
    "sheet": "pictures",
    "first": "first pictures",
    "seen": "tags seen",
    "features": "looks",
    "probabilities": "tags seen",
}
"""What users call an output, where that is not its name."""
SHOWN = 5
"""How many files or settings are named for one node."""


@dataclass
class Line:
    """What is said of one node."""

    label: str
    amount: str
    reasons: list[str] = field(default_factory=list)


def why(graph: Graph, recipe: str, kind: str | None, forecasts: Mapping[Node, Forecast], store: Store) -> Iterator[str]:
    """Lines that explain the next build of `recipe` if it has something to do, and else the last one that had.

    `kind` restricts them to the nodes of a kind, or to the one node of that label.
    """
    nodes = [node for node in graph.of_recipe(recipe) if kind in (None, node.kind, graph.label(node, recipe))]
    explain = _Explanation(graph, recipe, forecasts, store)
    if any(forecasts[node].outlook is not Outlook.FOUND for node in graph.of_recipe(recipe)):
        yield f"{recipe}: the next build has work to do"
        yield from explain.next_build(nodes)
    elif any(explain.is_new(node) for node in graph.of_recipe(recipe)):
        yield f"{recipe}: the next build finds everything; other than in the last one are"
        yield from explain.next_build(nodes)
    else:
        yield from explain.last_build(nodes)


class _Explanation:
    """The nodes of one recipe, with what the ledger remembers of them."""

    def __init__(self, graph: Graph, recipe: str, forecasts: Mapping[Node, Forecast], store: Store) -> None:
        self.graph, self.recipe, self.forecasts, self.store = graph, recipe, forecasts, store

    def is_new(self, node: Node) -> bool:
        """Whether the node was built before, and not with the key that it has now."""
        look, last = self.forecasts[node].look, self._last(node)
        return look is not None and last is not None and last.manifest.fields != look.manifest.fields

    def next_build(self, nodes: Sequence[Node]) -> Iterator[str]:
        yield from _table([line for node in nodes if (line := self._pending(node)) is not None])
        later = [self._label(node) for node in nodes if self.forecasts[node].outlook is Outlook.MAY_RUN]
        if later:
            yield "  and, if what they read comes out different:"
            yield f"    {', '.join(later)}"

    def _pending(self, node: Node) -> Line | None:
        cast, last = self.forecasts[node], self._last(node)
        if cast.look is None:
            return None
        amount = _amount(cast.todo, cast.total, "to make") if cast.outlook is Outlook.RUNS else "found"
        if last is None or last.manifest.fields != cast.look.manifest.fields:
            if node.kind in SCANNED:
                amount = "new" if last is None else "changed"
            return Line(
                self._label(node), amount, self.reasons(node, cast.look.manifest, last.manifest if last else None)
            )
        if cast.outlook is Outlook.RUNS:
            return Line(self._label(node), amount, ["an earlier build did not finish this"])
        return None

    def last_build(self, nodes: Sequence[Node]) -> Iterator[str]:
        lasts = {node: last for node in nodes if (last := self._last(node)) is not None}
        if not lasts:
            yield f"{self.recipe}: everything was found; it has not been built under this name yet"
            return
        newest = max(last.build for last in lasts.values())
        yield f"{self.recipe}: up to date; what the last build with changes, number {newest}, did and why"
        lines = []
        for node, last in lasts.items():
            if last.build == newest:
                amount = _amount(last.ran, last.total, "made") if last.ran else "found"
                amount = "read" if node.kind in SCANNED else amount
                lines.append(Line(self._label(node), amount, self.reasons(node, last.manifest, last.previous)))
        yield from _table(lines)

    def reasons(self, node: Node, new: Manifest, old: Manifest | None) -> list[str]:
        """The difference of two manifests, one text for each cause."""
        if old is None:
            return ["built for the first time"]
        found = []
        difference = new.difference(old)
        if any(name.startswith("found ") for name, _, _ in difference):
            found += _files(dict(old.fields), dict(new.fields), self.store)
        if any(name.startswith("item ") for name, _, _ in difference):
            found += _items(old, new)
        for name, before, after in difference:
            area, _, port = name.partition(" ")
            if area in ("input", "each", "column"):
                count = "" if area == "input" else _count(before, after, self.store)
                found.append(f"{self._source(node, port)} changed{count}")
            elif name == "version":
                found.append(f"lorac's code for this kind changed: version {before} → {after}")
            elif area not in ("found", "item"):
                found += _settings(name, before, after)
        return found if len(found) <= SHOWN + 1 else [*found[:SHOWN], f"and {len(found) - SHOWN} more"]

    def _source(self, node: Node, port: str) -> str:
        """What a port reads: `caption[riho_head]`, or `steps of schedule`."""
        if port not in node.inputs:
            return f"input {port}"
        source = node.inputs[port]
        label, output = self._label(source.node), source.output
        return label if output in (source.node.kind, "file") else f"{OUTPUTS.get(output, output)} of {label}"

    def _last(self, node: Node) -> Last | None:
        return self.store.ledger.last(self.graph.name(node, self.recipe))

    def _label(self, node: Node) -> str:
        return self.graph.label(node, self.recipe)


def _amount(count: int, total: int, verb: str) -> str:
    return f"{count} of {total} {verb}" if total > 1 else verb


def _table(lines: Sequence[Line]) -> Iterator[str]:
    """Label, amount and reasons in columns; further reasons stand below the first."""
    first = max((width(line.label) for line in lines), default=0)
    second = max((width(line.amount) for line in lines), default=0)
    for line in lines:
        head, *rest = line.reasons or [""]
        yield f"  {padded(line.label, first)}  {padded(line.amount, second)}  {head}".rstrip()
        yield from (" " * (first + second + 6) + reason for reason in rest)


def _settings(name: str, before: str | None, after: str | None) -> Iterator[str]:
    """A changed setting, by its name in the recipe as far as possible."""
    if (before or after or "").startswith("table of "):
        return  # the entries have fields of their own
    place = name.removeprefix("params.").removeprefix("sections.").removeprefix("settings.")
    if before is None or after is None:
        text = differences(before or "(absent)", after or "(absent)", place)
    else:
        text = differences(before, after, place)
    yield from (f"{where}: {old} → {new}" for where, old, new in text)


def _items(old: Manifest, new: Manifest) -> Iterator[str]:
    """What became of the recipe's own items, such as prompts: by what they are, as their numbers shift."""
    before, after = _counted(old), _counted(new)
    yield from (f"added: {text}" for text in (after - before).elements())
    yield from (f"removed: {text}" for text in (before - after).elements())
    if before == after:
        yield "another order"


def _counted(manifest: Manifest) -> Counter[str]:
    """Each item in words, such as `prompt "1girl", strength 0.5`, or `picture 3` of those that are only numbered.

    An empty text is not mentioned, and people count from 1.
    """
    items: dict[str, list[str]] = {}
    for name, value in manifest.fields:
        number, _, key = name.partition(".")
        if number.startswith("item "):
            parts = items.setdefault(number, [])
            if key == "number":
                parts.append(f"picture {int(value) + 1}")
            elif key and value != '""':
                parts.append(f"{key} {shown(value)}")
    return Counter(", ".join(parts) for parts in items.values())


def _files(old: Mapping[str, str], new: Mapping[str, str], store: Store) -> list[str]:
    """What happened to the files of a source."""
    try:
        before, after = _listing(old, store), _listing(new, store)
    except (BlobMissing, KeyError):
        return ["the file changed" if "found file" in new else "files changed"]
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
    return [f"{verb}: {listed(names, SHOWN)}" for verb, names in verbs.items()]


def _listing(fields: Mapping[str, str], store: Store) -> dict[str, tuple[Digest, Digest]]:
    """name -> (picture, caption) of a source as a manifest recorded it."""
    names, pictures, captions = (
        split(store.read(_digest(fields[f"found {c}"]))) for c in ("name", "picture", "caption")
    )
    texts = store.read_many(names)
    return {
        texts[name].decode("utf-8", "replace"): (picture, caption)
        for name, picture, caption in zip(names, pictures, captions, strict=True)
    }


def _count(before: str | None, after: str | None, store: Store) -> str:
    """How many items of a column are new, when both columns are still there."""
    if before is None or after is None:
        return ""
    try:
        old, new = (Counter(split(store.read(_digest(text)))) for text in (before, after))
    except BlobMissing:
        return ""
    if added := (new - old).total():
        return f" ({added} of {new.total()})" if new.total() > 1 else ""
    return f" ({removed} removed)" if (removed := (old - new).total()) else " (another order)"


def _digest(text: str) -> Digest:
    return bytes.fromhex(text.removeprefix("sha256:"))
