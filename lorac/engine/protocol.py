"""What the engine knows of a kind, and what a kind sees of the engine.

A kind is a module of `lorac.kinds` with these names. Its `run` gets the items that must be made and yields what it has
made, in any order; each yield is stored and survives whatever happens next. It reads blobs by digest, never the user's
folders, so the key says everything that can change the result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lorac.digest import Digest, Value
from lorac.engine.events import Measures
from lorac.errors import Problem
from lorac.graph.nodes import Node, Shape

Outputs: TypeAlias = Mapping[str, bytes | Path]
"""Output name -> bytes, or a finished file under `work.scratch`, which the store takes over; each has its own name."""


@dataclass(frozen=True)
class Made:
    """An item is finished. A LIST kind yields its items in order."""

    index: int
    outputs: Outputs


@dataclass(frozen=True)
class Failed:
    """An item cannot be made, and what the user can do about it."""

    index: int
    problems: Sequence[Problem]


@dataclass(frozen=True)
class Item:
    """One thing to make. `inputs` are the digests of the EACH ports, and of the previous item (`previous.OUTPUT`)."""

    index: int
    name: str
    params: Mapping[str, Value]
    inputs: Mapping[str, Digest]


@dataclass(frozen=True)
class Work:
    """Everything a kind's `run` gets."""

    params: Mapping[str, Any]
    hints: Mapping[str, Any]
    items: Sequence[Item]
    total: int
    shared: Mapping[str, Digest]
    columns: Mapping[str, Sequence[Digest]]
    read: Callable[[Digest], bytes]
    read_many: Callable[[Sequence[Digest]], Mapping[Digest, bytes]]
    open: Callable[[Digest], Path | bytes]
    scratch: Path
    keep: Callable[[str, Callable[[Path], None]], None]
    """keep(name, write): a file that `write(path)` writes, and that survives a crash whole or not at all."""
    kept: Callable[[str], Path | None]
    """kept(name): the file that an earlier try kept, if it is as it was written."""
    cancelled: threading.Event
    progress: Callable[[float, float, str], None]
    measure: Callable[[Measures], None]
    warn: Callable[[str], None]
    session: dict[str, Any] = field(default_factory=dict)


class Described(Protocol):
    """What every kind says of itself. Properties, so that a module's constants of a narrower type fit."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    @property
    def VERSION(self) -> int:  # noqa: N802
        """Raised whenever the same inputs may give other bytes."""

    @property
    def SHAPE(self) -> Shape: ...  # noqa: N802

    @property
    def OUTPUTS(self) -> tuple[str, ...]: ...  # noqa: N802


class Kind(Described, Protocol):
    """A module in `lorac/kinds/` that makes something from blobs."""

    @property
    def POOL(self) -> str:  # noqa: N802
        """ "cpu" (many at once) or "gpu" (one at a time: whatever uses torch)."""

    def run(self, work: Work) -> Iterable[Made | Failed]: ...


Next: TypeAlias = Callable[[Sequence[int]], Sequence[Work | None]]
"""The next work of the gang's members of these numbers, whose links are finished: None for who has none. It waits until
what they made is stored."""


@runtime_checkable
class Ganging(Kind, Protocol):
    """A kind of shape CHAIN and the "gpu" pool that can make several nodes at once."""

    def gang_group(self, node: Node) -> Hashable | None:
        """Nodes of the same group may go together, as far as the graph tells; None: this one never does."""

    def gang_key(self, work: Work) -> Hashable:
        """Among those, works of the same key do."""

    def gang_limit(self, works: Sequence[Work]) -> int:
        """How many of the first of these can, at least one."""

    def run_gang(self, works: Sequence[Work], more: Next) -> Iterable[tuple[int, Made | Failed | BaseException]]:
        """What the members make, or what stopped one of them, by their numbers in `works`.

        Who is stopped is not asked for again; the others go on. What is raised has stopped all that were left.
        """


class FileReader(Protocol):
    """How a scanner learns what files hold: paths with their stat results, to digests."""

    def __call__(self, paths: Sequence[tuple[str | Path, os.stat_result]], *, ingest: bool = True) -> list[Digest]: ...


class Scanner(Described, Protocol):
    """A kind that looks at the user's files. It runs in every build, so it must be quick, and has no key of its own."""

    @property
    def INGESTS(self) -> bool:  # noqa: N802
        """Whether the store holds what the digests stand for."""

    def scan(
        self, params: Mapping[str, Any], hints: Mapping[str, Any], read: FileReader
    ) -> tuple[list[str], dict[str, list[Digest]], dict[Digest, bytes]]:
        """(names of the items, a column per output, small blobs that the columns name)."""
