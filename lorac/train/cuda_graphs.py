"""Passes of equal shapes become one CUDA graph each: what `tape` is on a CPU.

A pass of SD1.5 is some five thousand kernels; to launch them from Python takes longer than a fast card computes. What a
pass does follows from the shapes of its inputs, so after a few runs it is captured, and from then on launched at once.
All that a graph reads and writes keeps its place: its inputs, the factors and what is cast or merged of them, the
buffers of gradients, the loss scale. Nothing here waits for the device but the capture itself.

The optimiser's update stays outside: some hundred kernels, which are launched while the card computes the pass.

What graphs hold, torch's allocator gives to graphs alone. So a pass that is done as it is takes its memory beside that:
two shapes' at once. Where there is no room for both, all graphs are let go before such a pass, and captured again as
their turns come; a shape needs one pass of that kind. And since a graph works in the memory of those before it as far
as their tensors were as large, there the largest comes first. (Eleven shapes at 512 px, batches up to 4, hold 3 % more
than the largest alone; from the smallest on, 43 % more: simulated by `benchmarks.pool`.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lorac.train.helper import Inline
from lorac.train.staged import Staged
from lorac.train.survive import give_back, is_out_of_memory
from lorac.train.tape import Inputs, Work

BEFORE = 3
"""Passes that are done as they are before the first capture; and one of each shape: in that, kernels are chosen and
loaded and caches are filled."""

MOST = 32
"""Shapes of passes that are told apart, by batch and gang. More than that go on without graphs."""

Outputs: TypeAlias = tuple[Tensor, ...]


class Capture(Protocol):
    """How a pass is done, and kept to be done again. Its inputs are in `device`'s memory."""

    device: torch.device
    held: int
    """Bytes that what was captured holds on to."""

    def run(self, work: Callable[[], Outputs]) -> Outputs:
        """Do it."""
        ...

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """What does the same again, and has not done it yet. Its outputs hold until any pass is done."""
        ...

    def forget(self, let_go: Callable[[], None]) -> None:
        """Nothing that was captured will be done again: `let_go` of it, and give its memory back."""


class Plain:
    """Keeps the pass itself: the same code without graphs, for any device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.held = device, 0

    def run(self, work: Callable[[], Outputs]) -> Outputs:
        return work()

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        return work

    def forget(self, let_go: Callable[[], None]) -> None:
        let_go()


class Cuda:
    """CUDA's graphs. They share one pool of memory, as one is launched at a time.

    Runs before a capture are on the stream of the capture, with what libraries keep for a stream. Whatever else is done
    waits for them, and they for it, on the device alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.held = device, 0
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Outputs]) -> Outputs:
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                return work()
        finally:
            outside.wait_stream(self._stream)

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        give_back()  # what is found to be garbage in a capture might free what must not be freed then
        before, graph = torch.cuda.memory_reserved(self.device), torch.cuda.CUDAGraph()
        try:
            # The outer context gives the stream back where a failed capture does not. Other threads may use the card.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                outputs = work()
        except BaseException:
            self._end_refused()
            raise
        self.held += torch.cuda.memory_reserved(self.device) - before

        def launch() -> Outputs:
            graph.replay()
            return outputs

        return launch

    def _end_refused(self) -> None:
        """Tell torch's allocator that a capture is over.

        Until pytorch/pytorch#180395, `CUDAGraph::capture_end` does so only after `cudaStreamEndCapture`, which raises
        if CUDA has refused something. Then `empty_cache` would raise, and an allocation that fails would empty no
        cache. torch has no public function for it.
        """
        # It raises where it knows.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._index, self._pool)

    def forget(self, let_go: Callable[[], None]) -> None:
        torch.cuda.synchronize(self.device)
        let_go()
        give_back()
        if self._is_kept():
            torch._C._cuda_releasePool(self._index, self._pool)
            torch.cuda.empty_cache()
        self._pool, self.held = torch.cuda.graph_pool_handle(), 0

    def _is_kept(self) -> bool:
        """Whether the pool has memory that nothing lies in: until pytorch/pytorch#190348, a capture that has failed
        holds it for good."""
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        return any(tuple(s["segment_pool_id"]) == tuple(self._pool) and not s["active_size"] for s in segments)

    @property
    def _index(self) -> int:
        return torch.cuda.current_device() if self.device.index is None else self.device.index


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trainers: cuBLAS keeps memory for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Captured:
    """A pass that is done `again`, its inputs, and the gradients that it leaves."""

    again: Callable[[], Outputs]
    inputs: Staged
    gradients: Sequence[tuple[nn.Parameter, Tensor]]
    size: int
    """Bytes of the inputs: those of larger passes are larger."""

    def play(self, inputs: Inputs) -> Outputs:
        self.inputs.fill(inputs)
        outputs = self.again()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return tuple(output.clone() for output in outputs)


class Graphs(Inline):
    """The graphs of a trainer; used as `Tapes` is.

    What a pass hands over to this executor is done at once, and so is what it says by `do`: on a card, an update is
    ordered behind the pass before it by the device, and there is nothing to settle. `recover` is called when a capture
    has left things half done. `room`: bytes that graphs may hold while a pass is done as it is.
    """

    def __init__(
        self,
        capture: Capture,
        enabled: bool,
        room: int,
        recover: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._capture, self._enabled, self._room, self._recover, self._warn = capture, enabled, room, recover, warn
        self._graphs: dict[Hashable, Captured] = {}
        self._runs: Counter[Hashable] = Counter()
        self.failures: list[str] = []
        self.played = 0

    def run(self, key: Hashable, inputs: Inputs, work: Work, parameters: Sequence[nn.Parameter]) -> Outputs:
        """`work(*inputs)`, with the inputs on the device; launched as a graph if there is one.

        What `work` does must follow from `key`, from the shapes of `inputs` and from the values of tensors that keep
        their memory from one run to the next. It returns tensors, and may set `grad` of `parameters`.
        """
        key = key, tuple(None if given is None else (given.shape, given.dtype, given.device) for given in inputs)
        if key not in self._graphs and self._is_due(key):
            self._add(key, inputs, work, parameters)
        if key in self._graphs:
            self.played += 1
            return self._graphs[key].play(inputs)
        if self._is_short():
            self._make_room(key)
        staged = Staged(inputs, self._capture.device).fill(inputs)
        return self._capture.run(lambda: work(*staged)) if self._enabled else work(*staged)

    def _is_due(self, key: Hashable) -> bool:
        """Whether it is time for a capture."""
        if not self._enabled or (key not in self._runs and len(self._runs) == MOST):
            return False
        self._runs[key] += 1
        return self._runs[key] > 1 and self._runs.total() > BEFORE

    def _is_short(self) -> bool:
        """Whether graphs hold more than there is room for beside a pass."""
        return bool(self._graphs) and self._capture.held > self._room

    def _make_room(self, key: Hashable) -> None:
        """For a pass that is done as it is: the first of its shape, or one of too many shapes."""
        if key in self._runs:
            self._drop()
        else:
            self._give_up(f"there are more than {MOST} shapes of batches, and no memory for some of them beside graphs")

    def _add(self, key: Hashable, inputs: Inputs, work: Work, parameters: Sequence[nn.Parameter]) -> None:
        """Capture a pass, which is not done by that. If CUDA refuses, there are no more graphs."""
        size = sum(given.nbytes for given in inputs if given is not None)
        if self._is_short() and size > max(each.size for each in self._graphs.values()):
            self._drop()
        staged = Staged(inputs, self._capture.device)
        try:
            again = self._capture.capture(lambda: work(*staged.tensors))
        except (RuntimeError, MemoryError) as error:
            reason, is_lack = str(error).partition("\n")[0], is_out_of_memory(error)
        else:
            gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
            self._graphs[key] = Captured(again, staged, gradients, size)
            return
        # Only here: the error's traceback held the tensors of the pass.
        self._recover()
        if is_lack:
            self._lacks_memory()
        else:
            self._give_up(reason)

    def _lacks_memory(self) -> None:
        """The first time, begin anew with no room beside a pass; after that, or if there was none, do without."""
        if self._room > 0:
            self._room = 0
            self._drop()
        else:
            self._give_up("memory ran out")

    def _give_up(self, reason: str) -> None:
        self._enabled = False
        self.failures.append(reason)
        self._drop()
        self._warn(f"training steps are no longer launched as CUDA graphs, which makes them slower: {reason}")

    def _drop(self) -> None:
        """Let go of all graphs and of their memory."""
        self._capture.forget(self._graphs.clear)

    def forget(self) -> bool:
        """Memory ran out in a pass: let go of all graphs; returns whether there were any."""
        held = bool(self._graphs)
        if held:
            self._lacks_memory()
        return held

    def tapes(self) -> list[Captured]:
        """All graphs."""
        return list(self._graphs.values())

    def do(self, action: Callable[[], None]) -> None:
        """Something that is not an operation on tensors of `work`."""
        action()
