"""How fast several nodes are that are made together."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lorac.engine import events


class GangProgress:
    """How far the nodes are that are made together."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.name = f"gang of {len(nodes)}"
        self.nodes, self._latest, self._first = nodes, dict[str, events.NodeProgress](), dict[str, float]()
        self._since = self._until = self.spoken = time.monotonic()

    def __contains__(self, node: str) -> bool:
        return node in self.nodes

    def take(self, event: events.NodeProgress) -> None:
        """A node's progress."""
        self._until = time.monotonic()
        if not self._first:
            self._since = self._until
        self._first.setdefault(event.node, event.done)
        self._latest[event.node] = event

    def rate(self) -> float:
        """Steps of all nodes in a second, from the first that was told to the last."""
        done = sum(event.done - self._first[node] for node, event in self._latest.items())
        return done / max(self._until - self._since, 1e-3)

    def text(self) -> str:
        """`a:train 120/300, b:train 80/200 steps, 45.2 LoRA-steps/s`; it is noted when."""
        self.spoken = time.monotonic()
        figures = ", ".join(f"{node} {event.done:g}/{event.total:g}" for node, event in self._latest.items())
        return f"{figures} steps, {self.rate():.1f} LoRA-steps/s"
