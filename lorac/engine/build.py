"""One `lorac build`: graph in, files out, and the facts of how it went."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorac.digest import Digest, split
from lorac.engine import events, outputs
from lorac.engine.executor import Executor
from lorac.engine.gang_progress import GangProgress
from lorac.engine.protocol import Kind, Scanner
from lorac.engine.resolve import Result
from lorac.errors import Interrupted, LoracError, StoreError
from lorac.graph.draw import by_kind
from lorac.graph.nodes import Graph, Node, Output
from lorac.store.blobs import Store
from lorac.store.ledger import LedgerDamaged

LOCK_SECONDS = 24 * 3600
PACKAGES = ("torch", "transformers", "safetensors", "pillow", "numpy", "msgspec", "onnxruntime")
OPTIMISERS = ("bitsandbytes", "lion-pytorch", "prodigyopt", "schedulefree")
"""Installed by who wants their optimisers."""


@dataclass
class Tally:
    """A listener that keeps what build.json reports of each node."""

    finished: dict[str, events.NodeFinished] = field(default_factory=dict)
    gangs: dict[str, GangProgress] = field(default_factory=dict)
    """By node, the last that it was in."""

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.NodeFinished():
                self.finished[event.node] = event
            case events.GangStarted():
                self.gangs |= dict.fromkeys(event.nodes, GangProgress(event.nodes))
            case events.NodeProgress() if event.node in self.gangs:
                self.gangs[event.node].take(event)


def build(
    graph: Graph,
    recipes: list[str],
    kinds: Mapping[str, Kind],
    scanners: Mapping[str, Scanner],
    store: Store,
    out: Path,
    listen: events.Listener,
    *,
    jobs: int,
    keep_going: bool = False,
    gang: bool = True,
) -> None:
    """Run the graph and write every recipe's folder. Raises what the executor raises; then no output has changed.

    With `keep_going`, the recipes that could be built are written before the error is raised.
    """
    started = time.perf_counter()
    tally = Tally()

    def tell(event: events.Event) -> None:
        tally(event)
        listen(event)

    def finished(ok: bool) -> None:
        ran, total = (sum(getattr(event, name) for event in tally.finished.values()) for name in ("ran", "total"))
        tell(events.BuildFinished(ok, ran, total - ran, time.perf_counter() - started))

    def attempt() -> None:
        executor = Executor(graph, kinds, scanners, store, tell, jobs=jobs, keep_going=keep_going, gang=gang)
        wanted, error = _run(executor, recipes, out)
        for recipe, files in wanted.items():
            report = outputs.install(files, store, out / recipe, tell)
            seconds = time.perf_counter() - started
            facts = build_facts(graph, recipe, executor.results, tally, report, seconds)
            outputs.write_json(out / recipe / "build.json", facts)
            _write_page(out / recipe / "build.html", facts, graph, recipe)
        if error is not None:
            raise error

    for recipe in recipes:
        outputs.check_writable(out / recipe)
    with _Lock(store, listen):
        store.tidy()
        tell(events.BuildStarted(recipes, len(graph.nodes)))
        try:
            try:
                attempt()
            except LedgerDamaged as damaged:
                tell(events.Warned("", str(damaged)))
                store.ledger.reopen()
                attempt()
        except LoracError:
            finished(False)
            raise
    finished(True)


def make(
    graph: Graph,
    kinds: Mapping[str, Kind],
    scanners: Mapping[str, Scanner],
    store: Store,
    listen: events.Listener,
    *,
    jobs: int,
) -> dict[Node, Result]:
    """Bring a part of a graph up to date and write no outputs; the bytes of all results are then in the store.

    What is made here the next build finds. Raises what the executor raises.
    """
    with _Lock(store, listen):
        executor = Executor(graph, kinds, scanners, store, listen, jobs=jobs)
        while True:
            results = executor.run()
            inside = [(n, r) for n, r in results.items() if n.kind in kinds or scanners[n.kind].INGESTS]
            if not executor.ensure({node: set(result.outputs.values()) for node, result in inside}):
                continue
            columns = [(node, result) for node, result in inside if result.names and node.kind in kinds]
            items = ((n, d) for n, r in columns for output in r.outputs.values() for d in split(store.read(output)))
            if executor.ensure(_grouped(items)):
                return dict(results)


def _run(
    executor: Executor, recipes: list[str], out: Path
) -> tuple[dict[str, list[outputs.Wanted]], LoracError | None]:
    """Run until the store has every blob that must be written: (files of the complete recipes, what went wrong)."""
    store, results = executor.store, executor.results
    while True:
        error = None
        try:
            executor.run()
        except LoracError as failure:
            if not executor.keep_going or isinstance(failure, Interrupted | LedgerDamaged):
                raise
            error = failure
        complete = _complete(executor, recipes)
        values = [output.value for own in complete.values() for output in own]
        columns = [(v.node, results[v.node].outputs[v.output]) for v in values if results[v.node].names]
        if not executor.ensure(_grouped(columns)):
            continue
        wanted = {recipe: outputs.wanted(own, results, store, out / recipe) for recipe, own in complete.items()}
        stale = (want for wants in wanted.values() for want in outputs.stale(wants, store))
        if executor.ensure(_grouped((want.node, want.value) for want in stale)):
            return wanted, error


def _complete(executor: Executor, recipes: list[str]) -> dict[str, list[Output]]:
    """The outputs of those recipes that have all their results: after a failure with -k, not all have."""
    outputs_of: dict[str, list[Output]] = {recipe: [] for recipe in recipes}
    for output in executor.graph.outputs:
        outputs_of[output.recipe].append(output)
    results = executor.results
    return {name: own for name, own in outputs_of.items() if all(output.value.node in results for output in own)}


def _grouped(pairs: Iterable[tuple[Node, Digest]]) -> dict[Node, set[Digest]]:
    grouped: dict[Node, set[Digest]] = {}
    for node, value in pairs:
        grouped.setdefault(node, set()).add(value)
    return grouped


def build_facts(
    graph: Graph, recipe: str, results: Mapping[Node, Result], tally: Tally, files: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """What `build.json` says: per kind hits and runs, the training's figures, the outputs, versions and times."""
    kinds: dict[str, dict[str, float]] = {}
    training: dict[str, Any] = {}
    for node in graph.of_recipe(recipe):
        event = tally.finished.get(node.name)
        if event is None:
            continue
        entry = kinds.setdefault(node.kind, {"hits": 0, "runs": 0, "seconds": 0.0})
        entry["runs"] += event.ran
        entry["hits"] += event.total - event.ran
        entry["seconds"] = round(entry["seconds"] + event.seconds, 3)
        if node.kind == "train":
            training = dict(event.measures)
            gang = tally.gangs.get(node.name)
            if gang is not None:
                training["trained_together"] = list(gang.nodes)
                training["lora_steps_per_second"] = round(gang.rate(), 3)
    if training.get("seconds"):
        training["steps_per_second"] = round(training["steps"] / training["seconds"], 3)
    return {
        "recipe": recipe,
        "runs": sum(int(entry["runs"]) for entry in kinds.values()),
        "hits": sum(int(entry["hits"]) for entry in kinds.values()),
        "kinds": kinds,
        "training": training,
        "outputs": dict(files),
        "versions": versions(),
        "seconds": round(seconds, 3),
    }


def _write_page(path: Path, facts: Mapping[str, Any], graph: Graph, recipe: str) -> None:
    """What build.json says, for people. Imported late: only who builds needs pages."""
    from lorac.report.build_page import build_page

    outputs.write(path, build_page(facts, by_kind(graph.of_recipe(recipe))))


def versions() -> dict[str, str]:
    """Versions by package metadata, without importing the packages."""
    found = {"python": platform.python_version(), "system": platform.system()}
    for package in ("lorac", *PACKAGES, *OPTIMISERS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class _Lock:
    """One build at a time for a store; a second one waits, and then finds the first one's work done."""

    def __init__(self, store: Store, listen: events.Listener) -> None:
        self._path = store.root / "build.lock"
        self._lock = FileLock(self._path)
        self._listen = listen

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._listen(events.Warned("", "another build is using this store; waiting for it to end"))
            try:
                self._lock.acquire(timeout=LOCK_SECONDS)
            except Timeout as error:
                raise StoreError(f"{self._path}: held by another build for a day; end it, or use --store") from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()
