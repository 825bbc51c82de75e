"""What happens to tensors while a piece of work runs: every operation below autograd, and how long each memory lives.

A track is what one thread does, in order: operations, and marks for what is not an operation. The helper's tracks are
recorded in the calling thread at the point where they are handed over; from there to the point where they are waited
for, they may run at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Mark: TypeAlias = Callable[[], object]
"""Something to do at its place in a track; it sees no tensor that is made in the recording."""

CHANGING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)
"""Operations that Python looks into, or that give something else every time."""

NEW = frozenset(["zeros", "ones", "full", "arange", "scalar_tensor", "new_zeros", "new_ones", "new_full"])
FACTORIES = NEW | {"zeros_like", "ones_like", "full_like"}
"""Operations whose values do not depend on tensors."""


@dataclass(frozen=True, eq=False)
class Call:
    """`function(*args, **kwargs)` at position `at` of the whole recording, which made the tensors `made`, None where it
    gave none. `made` is empty if it wrote into its arguments. `value` is what a factory made."""

    at: int
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: tuple[Tensor | None, ...]
    value: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """All that it reads and writes."""
        for value in (*self.args, *self.kwargs.values(), self.made):
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple)):
                yield from (element for element in value if isinstance(element, Tensor))

    def written(self) -> Iterator[Tensor]:
        """Those of its arguments that it changes."""
        for argument, value in self.given():
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                yield value

    def given(self) -> Iterator[tuple[Any, Any]]:
        """The arguments of its schema with their values."""
        for index, argument in enumerate(self.function._schema.arguments):
            default = self.kwargs.get(argument.name, argument.default_value)
            yield argument, self.args[index] if index < len(self.args) else default


@dataclass(eq=False)
class Track:
    """`start` and `end` bound the positions at which it may run."""

    start: int
    end: int | None = None
    items: list[Call | Mark] = field(default_factory=list)

    def calls(self) -> list[Call]:
        return [item for item in self.items if isinstance(item, Call)]


def memory(tensor: Tensor) -> int:
    """Which memory it lies in; views of one tensor have the same."""
    address: int = tensor.untyped_storage()._cdata
    return address


def _changing(function: Any, args: tuple[Any, ...]) -> bool:
    if function is torch.ops.aten.index.Tensor:  # the number of results follows from values only with a mask
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return any(tag in function.tags for tag in CHANGING)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records while it is entered. `failure` says why there is no recording: nothing is kept from then on."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.main = Track(0)
        self.tracks = [self.main]
        self.failure: str | None = None
        self.bytes = 0
        self._limit, self._clock, self._paused = limit, 0, False
        self._stack = [self.main]
        self._made: set[int] = set()
        self._kept: list[Tensor] = []  # so that no address is used twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.failure is None and not self._paused:
            self._add(func, args, kwargs, out)
        return out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within is not recorded."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def mark(self, mark: Mark) -> None:
        self._stack[-1].items.append(mark)

    def begin(self) -> Track:
        """What follows is for the helper."""
        track = Track(self._clock)
        self.tracks.append(track)
        self._stack.append(track)
        return track

    def hand_over(self) -> None:
        """It ends here."""
        self._stack.pop()

    def join(self, track: Track) -> bool:
        """The caller waits for the track here; False if it did so before."""
        if track.end is not None:
            return False
        track.end = self._clock
        self._clock += 1
        return True

    def fail(self, reason: str) -> None:
        self.failure = reason
        self.clear()

    def clear(self) -> None:
        """Let go of all tensors. They know the graph of autograd, which holds the trainer: as long as a track has them,
        neither is ever freed."""
        self._kept.clear()
        for track in self.tracks:
            track.items.clear()

    def lives(self) -> dict[int, tuple[int, int, int]]:
        """The first and last position at which each memory that was taken is in use, and its size in bytes."""
        lives: dict[int, tuple[int, int, int]] = {}
        for track in self.tracks:
            helped, end = track is not self.main, self._clock if track.end is None else track.end
            for call in track.calls():
                first, last = (track.start, end) if helped else (call.at, call.at)
                for tensor in call.tensors():
                    key = memory(tensor)
                    if key in self._made:
                        before = lives.get(key, (first, last, 0))
                        lives[key] = (min(first, before[0]), max(last, before[1]), tensor.untyped_storage().nbytes())
        return lives

    def _add(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if _changing(function, args):
            return self.fail(f"{function} depends on values")
        call = Call(self._clock, function, args, kwargs, ())
        self._clock += 1
        if function._schema.is_mutable:
            self._stack[-1].items.append(call)
            return None
        made = tuple(out) if isinstance(out, (tuple, list)) else (out,)
        if not all(tensor is None or isinstance(tensor, Tensor) for tensor in made):
            return self.fail(f"{function} gives something else than tensors")
        seen = {memory(tensor) for tensor in call.tensors()}
        if any(tensor is not None and memory(tensor) in seen for tensor in made):
            return None  # a view: it stays what it is
        self._take(tensor for tensor in made if tensor is not None)
        name = function._schema.name.removeprefix("aten::")
        if not name.startswith(("empty", "new_empty")):
            value = made[0].clone() if name in FACTORIES and made[0] is not None else None
            self._stack[-1].items.append(Call(call.at, function, args, kwargs, made, value))
        return None

    def _take(self, made: Iterable[Tensor]) -> None:
        for tensor in made:
            self._made.add(memory(tensor))
            self.bytes += tensor.untyped_storage().nbytes()
            self._kept.append(tensor)
        if self.bytes > self._limit:
            self.fail(f"it needs more than {self._limit >> 20} MB")
