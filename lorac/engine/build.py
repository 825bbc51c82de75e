"""One `lorac build`: graph in, files out, and the facts of how it went."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorac.engine import events, outputs
from lorac.engine.executor import Executor
from lorac.engine.protocol import Kind, Scanner
from lorac.engine.resolve import Result
from lorac.errors import StoreError
from lorac.graph.nodes import Graph, Node
from lorac.store.blobs import Store

LOCK_SECONDS = 24 * 3600
PACKAGES = ("torch", "transformers", "safetensors", "pillow", "numpy", "msgspec")


@dataclass
class Tally:
    """A listener that keeps what build.json reports of each node."""

    finished: dict[str, events.NodeFinished]

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.NodeFinished):
            self.finished[event.node] = event


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
) -> None:
    """Run the graph and write every recipe's folder. Raises what the executor raises; then no output has changed."""
    started = time.perf_counter()
    tally = Tally({})

    def tell(event: events.Event) -> None:
        tally(event)
        listen(event)

    with _lock(store, listen):
        tell(events.BuildStarted(recipes, len(graph.nodes)))
        executor = Executor(graph, kinds, scanners, store, tell, jobs=jobs, keep_going=keep_going)
        results = executor.run()
        folders = {recipe: out / recipe for recipe in recipes}
        while True:
            files = {
                recipe: outputs.wanted(
                    [output for output in graph.outputs if output.recipe == recipe], results, store, folders[recipe]
                )
                for recipe in recipes
            }
            needed: dict[Node, list[bytes]] = {}
            for want in (want for wants in files.values() for want in wants):
                needed.setdefault(want.node, []).append(want.value)
            if executor.ensure(needed):
                break
            results = executor.run()
        for recipe in recipes:
            report = outputs.install(files[recipe], store, folders[recipe], tell)
            seconds = time.perf_counter() - started
            facts = build_facts(graph, recipe, results, tally, report, seconds)
            outputs.write_json(folders[recipe] / "build.json", facts)
    counted = tally.finished.values()
    ran, total = sum(event.ran for event in counted), sum(event.total for event in counted)
    tell(events.BuildFinished(True, ran, total - ran, time.perf_counter() - started))


def build_facts(
    graph: Graph, recipe: str, results: Mapping[Node, Result], tally: Tally, files: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """What `build.json` says: per kind hits and runs, the training's figures, the outputs, versions and times."""
    kinds: dict[str, dict[str, float]] = {}
    training: dict[str, float] = {}
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


def versions() -> dict[str, str]:
    """Versions by package metadata, without importing the packages."""
    found = {"python": platform.python_version(), "system": platform.system()}
    for package in ("lorac", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class _lock:
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
