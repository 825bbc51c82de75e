"""Pieces of work, what worker threads do with them, and what they send to the main thread."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lorac.digest import Digest
from lorac.engine import events
from lorac.engine.protocol import Failed, Ganging, Kind, Made, Work
from lorac.engine.resolve import Lookup
from lorac.errors import Interrupted
from lorac.graph.nodes import Node

WAKE_SECONDS = 0.1
"""How often a gang that waits for its next work looks whether the build is being stopped."""

Inbox: TypeAlias = "queue.SimpleQueue[Work | None]"


@dataclass(frozen=True)
class Ended:
    """A worker is through with its piece; `error` is what stopped it.

    Into `inbox`, if there is one, a gang wants the node's next work, or None if it has none.
    """

    error: BaseException | None
    inbox: Inbox | None = None


@dataclass(frozen=True)
class Free:
    """The gpu pool has nothing to do."""


Body: TypeAlias = Made | Failed | Ended | Free | events.NodeProgress | events.Warned | dict[str, Any]


@dataclass(frozen=True, order=True)
class Piece:
    """Items of a node for one worker. Pieces are ordered as their nodes are in the graph."""

    node_number: int
    first_item: int
    node: Node = field(compare=False)
    look: Lookup = field(compare=False)
    work: Work = field(compare=False)

    @property
    def item_key(self) -> Digest:
        """Of its first item."""
        return self.look.item_keys[self.first_item]


@dataclass(frozen=True)
class Message:
    """What a worker sends, and the try of the node that it belongs to."""

    node: Node
    look: Lookup
    body: Body


Send: TypeAlias = Callable[[Message], None]


def run_piece(kind: Kind, piece: Piece, send: Send) -> None:
    """In a worker thread."""
    error: BaseException | None = None
    try:
        for made in kind.run(piece.work):
            send(Message(piece.node, piece.look, made))
            if piece.work.cancelled.is_set():
                raise Interrupted("interrupted")
    except BaseException as caught:  # handed to the main thread, which raises or reports it
        error = caught
    send(Message(piece.node, piece.look, Ended(error)))
    if kind.POOL == "gpu":
        send(Message(piece.node, piece.look, Free()))


def run_gang(kind: Ganging, pieces: Sequence[Piece], send: Send) -> None:
    """The same for several nodes at once: links of chains, each of which may have a next one."""
    inboxes: list[Inbox] = [queue.SimpleQueue() for _ in pieces]
    running = set(range(len(pieces)))

    def tell(number: int, body: Body) -> None:
        send(Message(pieces[number].node, pieces[number].look, body))

    def more(numbers: Sequence[int]) -> Iterator[Work | None]:
        for number in numbers:
            tell(number, Ended(None, inboxes[number]))
        for number in numbers:
            work = _await(inboxes[number], pieces[number])
            if work is None:
                running.discard(number)
            yield work

    error: BaseException | None = None
    try:
        for number, made in kind.run_gang([piece.work for piece in pieces], lambda numbers: list(more(numbers))):
            if isinstance(made, BaseException):
                running.discard(number)
                tell(number, Ended(made))
            else:
                tell(number, made)
    except BaseException as caught:
        error = caught
    for number in sorted(running):
        tell(number, Ended(error))
    tell(0, Free())


def _await(inbox: Inbox, piece: Piece) -> Work | None:
    while not piece.work.cancelled.is_set():
        try:
            return inbox.get(timeout=WAKE_SECONDS)
        except queue.Empty:
            continue
    return None
