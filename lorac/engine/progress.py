"""How far a build is: the state of every node, and the results that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from lorac.digest import Digest
from lorac.engine.events import Measures
from lorac.engine.resolve import Lookup, Result
from lorac.graph.nodes import Graph, Node


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class Progress:
    """What is known of one node.

    look: the try that is going on. pieces: of this try, still with workers. asked, failed: items of this try.
    lost: the result that the node had before it was set back.
    """

    state: State = State.WAITING
    look: Lookup | None = None
    pieces: int = 0
    asked: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    ran: int = 0
    repairs: int = 0
    lost: Result | None = None
    started: float = 0.0
    seconds: float = 0.0
    measures: dict[str, Any] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        """Begin again, with nothing that was derived from the inputs."""
        self.state, self.look, self.session = State.WAITING, None, {}
        self.asked, self.failed = set(), set()

    def stop(self, state: State) -> None:
        """FAILED or SKIPPED: nobody goes on with its session, which may hold models."""
        self.state = state
        self.session.clear()

    def measured(self, measures: Measures) -> None:
        """Sum what adds up; keep the largest of what is called a peak, and all texts."""
        for name, value in measures.items():
            if isinstance(value, Mapping):
                self.measures[name] = {**self.measures.get(name, {}), **value}
                continue
            before = self.measures.get(name, 0.0)
            self.measures[name] = max(before, value) if name.startswith("peak") else before + value


class Standing:
    """All nodes of a build with their progress, and the results so far. Only the main thread looks at it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {node: Progress() for node in graph.nodes}
        self.results: dict[Node, Result] = {}
        self.outside: set[Digest] = set()
        """Digests of files that are read from where they are."""

    def settled(self) -> bool:
        return all(progress.state not in (State.WAITING, State.RUNNING) for progress in self.nodes.values())

    def running(self) -> list[Node]:
        return [node for node, progress in self.nodes.items() if progress.state is State.RUNNING]

    def is_current(self, node: Node, look: Lookup) -> bool:
        """Whether this is the try of the node that is going on: it may have been set back since."""
        return self.nodes[node].look is look
