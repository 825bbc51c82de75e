"""`lorac tag`: what the tagger sees, as text files beside the pictures.

The pictures are tagged by the nodes of a build, so that a later build finds the probabilities in the store. Written is
what the tagger saw, before the recipe's rules: triggers, exclude and replace stay in the recipe, where they can be
changed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorac.captions import decode_caption, unmatched
from lorac.engine import events
from lorac.engine.build import make
from lorac.engine.resolve import Result
from lorac.errors import InputError, Problem
from lorac.graph.lower import lower
from lorac.graph.nodes import Graph, Node
from lorac.kinds.registry import KINDS, SCANNERS
from lorac.listing import Picture, pictures, shown_path
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.tagger import thresholds
from lorac.store import files
from lorac.store.blobs import Store
from lorac.tagger.vocabulary import Tag, Thresholds, caption, read_tags


@dataclass(frozen=True)
class Tagged:
    """A picture and its text: read from `path`, or what the tagger saw, which may go to `path`."""

    picture: Picture
    path: Path
    text: str
    new: bool


@dataclass(frozen=True)
class Folder:
    """The pictures of one source or regularisation folder."""

    spec: PictureSet
    pictures: tuple[Tagged, ...]


def folders(
    recipes: list[Recipe], store: Store, listen: events.Listener, *, jobs: int, overwrite: bool
) -> list[tuple[Recipe, list[Folder]]]:
    """What the tagger sees in every picture that has no text; with `overwrite`, in every picture.

    Raises InputError for recipes without a tagger, and for whatever a build would not take.
    """
    problems = [_no_tagger(recipe) for recipe in recipes if recipe.tagger.model is None]
    if problems:
        raise InputError(problems)
    found = []
    for recipe in recipes:
        graph = lower([recipe]).part(_tags_files)
        if overwrite:
            graph = _of_all(graph)
        results = make(graph, KINDS, SCANNERS, store, listen, jobs=jobs)
        found.append((recipe, _folders(recipe, graph, results, store, overwrite=overwrite)))
    return found


def lines(found: list[tuple[Recipe, list[Folder]]], *, dry_run: bool) -> Iterator[str]:
    """Writes the texts, unless `dry_run`, and says what became of every picture, and which rules met no tag."""
    count: Counter[str] = Counter()
    done: dict[Path, str] = {}  # two recipes may share a folder: the second one keeps what the first has written
    for recipe, sets in found:
        yield recipe.name
        for folder in sets:
            for tagged in folder.pictures:
                text = done.get(tagged.path, tagged.text)
                if not tagged.new or tagged.path in done:
                    fate = "kept"
                elif not text:
                    fate = "nothing"
                elif dry_run:
                    fate = "seen"
                else:
                    fate = "written"
                    files.write(tagged.path, f"{text}\n".encode())
                    done[tagged.path] = text
                count[fate] += 1
                yield f"  {fate:<8} {Path(folder.spec.path).name}/{tagged.picture.name}  {text}".rstrip()
        yield from idle_rules(recipe, sets)
    yield ", ".join(f"{number} {fate}" for fate, number in sorted(count.items()))


def idle_rules(recipe: Recipe, found: list[Folder]) -> list[str]:
    """The exclude and replace rules that met no tag in any picture, and where they stand."""
    own = [folder for folder in found if not folder.spec.regularisation]
    texts = [tagged.text for folder in own for tagged in folder.pictures]
    lines = []
    for rule in unmatched(recipe.rules(recipe.sources[0]), texts):
        kind = "exclude" if rule in recipe.caption.exclude else "replace"
        lines.append(f'{recipe.where(f"caption.{kind}")}: {kind} "{rule}" met no tag in any picture')
    return lines


def _no_tagger(recipe: Recipe) -> Problem:
    remedy = 'add [tagger] with model = "builtin:mini" or the folder of another, or --set tagger.model=…'
    return Problem(recipe.where("tagger.model"), "the recipe has no tagger", remedy)


def _tags_files(node: Node) -> bool:
    """Generated pictures are left out: there is no folder for their texts."""
    return node.kind == "tag" and node.inputs["picture"].node.kind == "source"


def _of_all(graph: Graph) -> Graph:
    """The same nodes with no regard to the texts that there are."""
    changed = Graph()
    for node in graph.nodes:
        inputs = {port: source for port, source in node.inputs.items() if port != "caption"}
        again = node if node.kind != "tag" else dataclasses.replace(node, inputs=inputs)
        changed.add(again)
        changed.names[again] = graph.names[node]
    return changed


def _folders(
    recipe: Recipe, graph: Graph, results: Mapping[Node, Result], store: Store, *, overwrite: bool
) -> list[Folder]:
    levels = Thresholds(**thresholds(recipe.tagger))
    nodes = {_path(node): node for node in graph.nodes if node.kind == "tag"}
    names = next(node for node in graph.nodes if node.kind == "vocabulary")
    tags = read_tags(store.read(results[names].outputs["file"]), shown_path(str(names.hints["path"])))
    problems: list[Problem] = []
    found = []
    for spec in (spec for spec in recipe.folders if spec.generate is None):
        node = nodes.get(spec.path)
        listed = pictures(spec.path, recipe.caption.extension, spec.where)
        seen: dict[str, bytes] = {}
        if node is not None and not spec.caption:
            column = results[node].column("probabilities", store)
            seen = {path: store.read(value) for path, value in zip(results[node].names, column, strict=True)}
        if not overwrite:  # somebody may have written a text while the tagger was at work
            seen = {p.path: seen[p.path] for p in listed if p.caption_path is None and p.path in seen}
        extension = recipe.caption.extension
        found.append(Folder(spec, tuple(_tagged(listed, seen, tags, levels, extension, problems))))
    if problems:
        raise InputError(problems)
    return found


def _path(tag: Node) -> str:
    return str(tag.inputs["picture"].node.hints["path"])


def _tagged(
    listed: list[Picture],
    seen: Mapping[str, bytes],
    tags: tuple[Tag, ...],
    levels: Thresholds,
    extension: str,
    problems: list[Problem],
) -> Iterator[Tagged]:
    for picture in listed:
        path = Path(picture.caption_path or Path(picture.path).with_suffix(extension))
        probabilities = seen.get(picture.path, b"")
        if probabilities:
            yield Tagged(picture, path, caption(tags, probabilities, levels), new=True)
        elif picture.caption_path is not None:
            try:
                yield Tagged(picture, path, decode_caption(path.read_bytes()), new=False)
            except (ValueError, OSError) as error:
                cause, _, remedy = str(error).partition("; ")
                problems.append(Problem(shown_path(path), f"the caption {cause}", remedy))
