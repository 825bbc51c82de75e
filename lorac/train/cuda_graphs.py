"""Passes of equal shapes become one CUDA graph each: what `tape` is on a CPU.

A pass of SD1.5 is some five thousand kernels; to launch them from Python takes longer than a fast card computes. What a
pass does follows from the shapes of its inputs, so after a few runs it is captured, and from then on launched at once.
All that a graph reads and writes keeps its place: its inputs, the factors and what is cast or merged of them, the
buffers of gradients, the loss scale. Nothing here waits for the device but the capture itself.

The optimiser's update stays outside: some hundred kernels, which are launched while the card computes the pass.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lorac.train.helper import Inline
from lorac.train.tape import Inputs, Work

BEFORE = 3
"""Equal passes that are done as they are: in the first, kernels are chosen and loaded and caches are filled."""

MOST = 32
"""Shapes of passes that are told apart, by batch and gang. More than that go on without graphs."""

ALIGNED = 256
"""Bytes; where the inputs of a graph begin, as those of torch's allocator do."""

Outputs: TypeAlias = tuple[Tensor, ...]


class Capture(Protocol):
    """How a pass is done, and kept to be done again. Its inputs are in `device`'s memory."""

    device: torch.device

    def run(self, work: Callable[[], Outputs]) -> Outputs:
        """Do it."""
        ...

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """What does the same again, and has not done it yet. Its outputs hold until any pass is done."""
        ...

    def forget(self) -> None:
        """Nothing that was captured is used any more."""


class Plain:
    """Keeps the pass itself: the same code without graphs, for any device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def run(self, work: Callable[[], Outputs]) -> Outputs:
        return work()

    def capture(self, work: Callable[[], Outputs]) -> Callable[[], Outputs]:
        return work

    def forget(self) -> None:
        pass


class Cuda:
    """CUDA's graphs. They share one pool of memory, as one is launched at a time.

    Runs before a capture are on the stream of the capture, with what libraries keep for a stream. Whatever else is done
    waits for them, and they for it, on the device alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
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
        gc.collect()  # what is found to be garbage in a capture might free what must not be freed then
        graph = torch.cuda.CUDAGraph()
        # The outer context gives the stream back where a failed capture does not. Other threads may use the card.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            outputs = work()

        def launch() -> Outputs:
            graph.replay()
            return outputs

        return launch

    def forget(self) -> None:
        torch.cuda.synchronize(self.device)
        self._pool = torch.cuda.graph_pool_handle()


class Staged:
    """Memory of the device for inputs of these shapes. All that comes from the CPU comes in one copy.

    torch keeps the pinned memory of a copy until the device has made it, and then gives it to a later one.
    """

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self._places: dict[int, _Place] = {}
        self._size, self._pinned = 0, device.type == "cuda"
        for number, given in enumerate(inputs):
            if given is not None and given.is_cpu:
                self._places[number] = _Place(self._size, given.nbytes, given.dtype, given.shape)
                self._size += -(-given.nbytes // ALIGNED) * ALIGNED
        self._bytes = torch.zeros(self._size, dtype=torch.uint8, device=device)
        self.tensors = [
            self._places[number].of(self._bytes) if number in self._places else _like(given)
            for number, given in enumerate(inputs)
        ]

    def fill(self, inputs: Inputs) -> Inputs:
        """Copy `inputs` here; returns the tensors that hold them from now on."""
        staging = torch.empty(self._size, dtype=torch.uint8, pin_memory=self._pinned)
        for number, (own, given) in enumerate(zip(self.tensors, inputs, strict=True)):
            if own is not None and given is not None:
                (self._places[number].of(staging) if number in self._places else own).copy_(given)
        self._bytes.copy_(staging, non_blocking=True)
        return self.tensors


class _Place(NamedTuple):
    """Where an input lies in a block of bytes."""

    start: int
    size: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, block: Tensor) -> Tensor:
        return block[self.start : self.start + self.size].view(self.dtype).view(self.shape)


def _like(given: Tensor | None) -> Tensor | None:
    return None if given is None else torch.zeros_like(given)


@dataclass(frozen=True)
class Captured:
    """A pass that is done `again`, its inputs, and the gradients that it leaves."""

    again: Callable[[], Outputs]
    inputs: Staged
    gradients: Sequence[tuple[nn.Parameter, Tensor]]

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
    has left things half done.
    """

    def __init__(
        self,
        capture: Capture,
        enabled: bool,
        recover: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._capture, self._enabled, self._recover, self._warn = capture, enabled, recover, warn
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
        staged = Staged(inputs, self._capture.device).fill(inputs)
        return self._capture.run(lambda: work(*staged)) if self._enabled else work(*staged)

    def _is_due(self, key: Hashable) -> bool:
        """Whether it is time for a capture."""
        if not self._enabled or (key not in self._runs and len(self._runs) == MOST):
            return False
        self._runs[key] += 1
        return self._runs[key] > BEFORE

    def _add(self, key: Hashable, inputs: Inputs, work: Work, parameters: Sequence[nn.Parameter]) -> None:
        """Capture a pass, which is not done by that. If CUDA refuses, there are no more graphs."""
        staged = Staged(inputs, self._capture.device)
        try:
            again = self._capture.capture(lambda: work(*staged.tensors))
        except (RuntimeError, MemoryError) as error:
            self._give_up(str(error).partition("\n")[0])
            self._recover()
            return
        gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        self._graphs[key] = Captured(again, staged, gradients)

    def _give_up(self, reason: str) -> None:
        self._enabled = False
        self.failures.append(reason)
        self._graphs.clear()
        self._capture.forget()
        self._warn(f"training steps are no longer launched as CUDA graphs, which makes them slower: {reason}")

    def forget(self) -> bool:
        """Memory ran out: let go of all graphs, for good; returns whether there were any."""
        held = bool(self._graphs)
        if held:
            self._give_up("memory ran out")
        return held

    def tapes(self) -> list[Captured]:
        """All graphs."""
        return list(self._graphs.values())

    def do(self, action: Callable[[], None]) -> None:
        """Something that is not an operation on tensors of `work`."""
        action()
