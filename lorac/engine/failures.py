"""What went wrong in a build: told at once, raised at its end."""

from __future__ import annotations

from lorac.engine import events
from lorac.engine.progress import Standing, State
from lorac.engine.protocol import Failed
from lorac.errors import InputError, LoracError, Problem
from lorac.graph.nodes import Node
from lorac.store import files
from lorac.store.blobs import Store


class Failures:
    """True when there are any."""

    def __init__(self, standing: Standing, store: Store, listen: events.Listener) -> None:
        self._standing, self._store, self._listen = standing, store, listen
        self._problems: list[Problem] = []
        self._errors: list[LoracError] = []

    def __bool__(self) -> bool:
        return bool(self._problems or self._errors)

    def of_item(self, node: Node, failed: Failed) -> None:
        """An item cannot be made; others of the node may be."""
        self._standing.nodes[node].failed.add(failed.index)
        self._problems += failed.problems
        for problem in failed.problems:
            self._listen(events.Failure(node.name, str(problem)))

    def of_node(self, node: Node, error: BaseException) -> None:
        """What stopped a node. Raises what is no fault of the user's or the disk's."""
        self._standing.nodes[node].stop(State.FAILED)
        if isinstance(error, OSError) and files.is_full(error):
            error = files.refusal(self._store.root, error)
        if isinstance(error, InputError):
            self.of_item(node, Failed(0, error.problems))
        elif isinstance(error, LoracError):
            self._errors.append(error.bare())
            self._listen(events.Failure(node.name, str(error)))
        else:
            raise error

    def raise_them(self) -> None:
        """All problems in one InputError, or the first other error; nothing if there is none."""
        if self._problems:
            problems = dict.fromkeys(self._problems)
            raise InputError(sorted(problems, key=lambda problem: (problem.where, problem.cause)))
        if self._errors:
            raise self._errors[0]
