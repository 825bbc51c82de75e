"""What happens during a build, as data. The console, `--json` and `build.json` are readers of this one stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

Measures: TypeAlias = Mapping[str, Any]
"""What a kind says of its own work: numbers, or texts by name."""


@dataclass(frozen=True)
class BuildStarted:
    recipes: list[str]
    nodes: int


@dataclass(frozen=True)
class NodeStarted:
    """Some items of a node are going to be made."""

    node: str
    kind: str
    todo: int
    total: int


@dataclass(frozen=True)
class NodeProgress:
    """`done` of `total`, in the kind's own unit, which `note` may name with a figure or two."""

    node: str
    kind: str
    done: float
    total: float
    note: str


@dataclass(frozen=True)
class GangStarted:
    """These nodes are made together from now on; each has its own progress."""

    nodes: list[str]
    kind: str


@dataclass(frozen=True)
class NodeFinished:
    """A node has its result: `ran` of its `total` items were made, the others found."""

    node: str
    kind: str
    ran: int
    total: int
    seconds: float
    measures: Measures = field(default_factory=dict)


@dataclass(frozen=True)
class Warned:
    node: str
    text: str


@dataclass(frozen=True)
class Failure:
    node: str
    text: str


@dataclass(frozen=True)
class FileWritten:
    """An output file; `changed` says whether it had to be written."""

    path: str
    sha256: str
    bytes: int
    changed: bool


@dataclass(frozen=True)
class BuildFinished:
    ok: bool
    ran: int
    hits: int
    seconds: float


Event: TypeAlias = (
    BuildStarted
    | NodeStarted
    | GangStarted
    | NodeProgress
    | NodeFinished
    | Warned
    | Failure
    | FileWritten
    | BuildFinished
)
Listener: TypeAlias = Callable[[Event], None]


def as_json(event: Event) -> str:
    """One line of the JSON log."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}, ensure_ascii=False)
