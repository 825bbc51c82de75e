"""The build graph of a recipe, drawn by kinds from top to bottom, narrow enough for a phone.

Layers after Sugiyama: every kind stands below what it reads; an arrow across several layers has a bend in each; the
order within a layer follows the means of the neighbours' places. An arrow that follows from others is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from lorac.report.markup import number, text

if TYPE_CHECKING:  # every build draws its graph, so this module loads nothing that it can do without
    from lorac.report.content import Outline

_BOX, _HEIGHT, _PITCH, _GAP, _BEND = 84, 38, 62, 8, 14
"""Width and height of a box, from one layer to the next, between two boxes, and the width that an arrow takes."""
_SWEEPS = 6

Place: TypeAlias = tuple[int, float]
"""Where a kind, or a bend of an arrow, stands: its layer, and its middle from the left."""

ABOUT = {
    "source": "pictures and texts, by content",
    "generate": "pictures drawn by the base",
    "image": "turned, resized and cropped",
    "tagger": "the tagger's model",
    "vocabulary": "the tagger's words",
    "tag": "what the tagger sees",
    "caption": "texts after the recipe's rules",
    "tokens": "captions as numbers",
    "base": "the base checkpoint",
    "weights": "its U-Net, VAE and text encoder",
    "latent": "pictures through the VAE",
    "schedule": "the whole training run as data",
    "start": "the LoRA to begin with",
    "train": "the LoRA, epoch by epoch",
    "export": "the files for web UIs",
    "draw": "sample pictures",
    "validate": "loss of held-out pictures",
    "measure": "what is seen in the samples",
    "evaluate": "figures with intervals",
    "sidecar": "what web UIs show",
    "report": "this page",
    "compare": "recipes side by side",
}
"""What each kind makes, in a few words."""


def drawing(reads: Mapping[str, Sequence[str]], items: Mapping[str, int], ran: Mapping[str, int] | None = None) -> str:
    """An inline SVG of the graph that `reduced` gave; below the names of the kinds their numbers of items.

    With `ran`, how many items of each kind were made, those kinds are outlined.
    """
    layers, chains = _layered(reads)
    places = _placed(layers, chains)
    width = max((x for _, x in places.values()), default=0.0) + _BOX / 2 + 2
    height = len(layers) * _PITCH - (_PITCH - _HEIGHT) + 4
    arrows = "".join(_arrow([places[name] for name in chain]) for chain in chains)
    boxes = "".join(_box(kind, places[kind], items.get(kind), ran) for kind in reads)
    said = "; ".join(f"{kind} reads {', '.join(sources)}" for kind, sources in reads.items() if sources)
    return (
        f'<svg class="graph" viewBox="0 0 {width:.0f} {height}" style="max-width:{width * 1.15:.0f}px" '
        f'role="img" aria-label="{text(f"Build graph: {said}")}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0.5L8 4L0 7.5z"/></marker></defs>{arrows}{boxes}</svg>\n'
    )


def reduced(reads: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same graph in dependency order, without the edges that follow from others (its transitive reduction)."""
    order: list[str] = []

    def visit(kind: str) -> None:
        if kind not in order:
            for source in sorted(reads.get(kind, ())):
                visit(source)
            order.append(kind)

    for kind in sorted(reads):
        visit(kind)
    above: dict[str, set[str]] = {}
    for kind in order:
        above[kind] = set(reads.get(kind, ())).union(*(above[source] for source in reads.get(kind, ())))
    return {
        kind: sorted(s for s in set(reads.get(kind, ())) if not any(s in above[other] for other in reads.get(kind, ())))
        for kind in order
    }


def _layered(reads: Mapping[str, Sequence[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """(names by layer, the chain of names that each arrow runs through). Bends have names of their own."""
    depth: dict[str, int] = {}
    for kind, sources in reads.items():
        depth[kind] = max((depth[source] + 1 for source in sources), default=0)
    for kind, sources in reads.items():  # what reads nothing stands just above its first reader
        readers = [depth[other] for other, its in reads.items() if kind in its]
        if not sources and readers:
            depth[kind] = min(readers) - 1
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for kind in reads:
        layers[depth[kind]].append(kind)
    chains = []
    for kind, sources in reads.items():
        for source in sources:
            bends = [f"{source}>{kind}>{layer}" for layer in range(depth[source] + 1, depth[kind])]
            for layer, bend in enumerate(bends, depth[source] + 1):
                layers[layer].append(bend)
            chains.append([source, *bends, kind])
    return layers, chains


def _placed(layers: Sequence[list[str]], chains: Sequence[Sequence[str]]) -> dict[str, Place]:
    """Middles that follow the neighbours', with room between them; the leftmost box begins at 2."""
    near: dict[str, list[str]] = {name: [] for layer in layers for name in layer}
    for chain in chains:
        for one, other in pairwise(chain):
            near[one].append(other)
            near[other].append(one)
    x = {name: float(index) * (_BOX + _GAP) for layer in layers for index, name in enumerate(layer)}
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wish = {name: sum(x[n] for n in near[name]) / len(near[name]) if near[name] else x[name] for name in layer}
            layer.sort(key=lambda name: (wish[name], name))
            _spread(layer, wish, x)
    left = min((x[name] - _width(name) / 2 for name in x), default=0.0) - 2
    return {name: (number, x[name] - left) for number, layer in enumerate(layers) for name in layer}


def _spread(layer: Sequence[str], wish: Mapping[str, float], x: dict[str, float]) -> None:
    """Give the names of a layer, in their order, places near to their wishes that do not overlap."""
    least = [0.0]
    for one, other in pairwise(layer):
        least.append(least[-1] + (_width(one) + _width(other)) / 2 + _GAP)
    # Pool neighbours whose wishes, less the room before them, run against their order (isotonic regression).
    pools: list[tuple[float, int]] = []
    for name, room in zip(layer, least, strict=True):
        pools.append((wish[name] - room, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    shifts = [shift for shift, count in pools for _ in range(count)]
    for name, room, shift in zip(layer, least, shifts, strict=True):
        x[name] = round(shift + room, 3)


def _width(name: str) -> float:
    return _BEND if ">" in name else _BOX


def _arrow(places: Sequence[Place]) -> str:
    layer, x = places[0]
    y = layer * _PITCH + _HEIGHT + 2.0
    path = f"M{x:.1f} {y:.1f}"
    for layer, to in places[1:]:
        end = layer * _PITCH + (0.0 if layer == places[-1][0] else _HEIGHT / 2)
        middle = (y + end) / 2
        path += f"C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {end:.1f}"
        x, y = to, end
    return f'<path class="arrow" d="{path}" marker-end="url(#arrow)"/>'


def _box(kind: str, place: Place, items: int | None, ran: Mapping[str, int] | None) -> str:
    style = "box" if ran is None else "box ran" if ran.get(kind) else "box found"
    left, top, middle = place[1] - _BOX / 2, place[0] * _PITCH + 2, f"{place[1]:.1f}"
    count = "" if items is None else f"× {number(items)}"
    name_y = top + (15 if count else 22)
    note = f'<text class="count" x="{middle}" y="{top + 28}" text-anchor="middle">{count}</text>' if count else ""
    return (
        f'<g class="{style}"><rect x="{left:.1f}" y="{top}" width="{_BOX}" height="{_HEIGHT - 4}" rx="6"/>'
        f'<text x="{middle}" y="{name_y}" text-anchor="middle">{text(kind)}</text>{note}</g>'
    )


def graph_section(outline: Outline | None) -> str:
    """The drawing, with what each kind makes beside it; nothing without an outline."""
    if outline is None or not outline.reads:
        return ""
    reads = reduced(outline.reads)
    rows = "".join(
        f'<tr><th scope="row">{text(kind)}</th><td>{_items(outline.items.get(kind))}</td>'
        f"<td>{ABOUT.get(kind, '')}</td></tr>\n"
        for kind in reads
    )
    return (
        '<section id="graph"><h2>Graph</h2>\n<p class="lead">How the recipe was compiled: what each part of the build '
        "reads. Where nothing has changed, nothing is made again. "
        'Measured memory and times: <a href="build.html">build.html</a>.</p>\n'
        f'<div class="graphs">{drawing(reads, outline.items)}<table class="kinds"><thead><tr><th scope="col">Kind</th>'
        f'<th scope="col">Items</th><th scope="col">What it makes</th></tr></thead>\n<tbody>{rows}</tbody></table>'
        "</div></section>\n"
    )


def _items(count: int | None) -> str:
    return "" if count is None else number(count)
