"""Steps of equal shapes are recorded once and played back: "CUDA graphs" for a CPU and a small base.

A step of the small base is thousands of operations of a few microseconds each, and Python, autograd and the allocator
take as long again. What a step does follows from the shapes of its inputs alone, so it is recorded (`recording`), and
from then on only the kernels run (`playback`), in the same order on the same threads: the result has the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lorac.train.helper import threads
from lorac.train.playback import Action, Compiler, Unplayable, check
from lorac.train.recording import Recorder, Track

P = ParamSpec("P")
T = TypeVar("T")

LIMIT = 2**30
"""Bytes that a step may take without giving any back while it is recorded; larger ones are not recorded. One of five
LoRAs takes 413 MB, and its tape holds 130."""

HELD = 2**30
"""Bytes that all tapes of a trainer may hold. A tape that would go beyond that is not kept."""

MOST = 32
"""Shapes of steps that are told apart. More than that go on without tapes."""

BEFORE = 8
"""Equal steps that are done as they are: to record one takes as long as twenty do."""

Inputs: TypeAlias = Sequence[Tensor | None]
Work: TypeAlias = Callable[..., tuple[Tensor, ...]]


class Tape:
    """One recorded step: `play` does it again for other values of its inputs.

    It holds `bytes` of memory, where the step took `taken` bytes in all.
    """

    def __init__(
        self, recorder: Recorder, inputs: Inputs, outputs: tuple[Tensor, ...], parameters: Sequence[nn.Parameter]
    ) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        compiler = Compiler(recorder, [*outputs, *(gradient for _, gradient in self._gradients)])
        self._actions = {track: compiler.actions(track) for track in recorder.tracks}
        recorder.clear()
        self._main = recorder.main
        self.bytes, self.taken = compiler.arena.size, recorder.bytes
        self._running: dict[Track, Future[None]] = {}

    @torch.no_grad()
    def play(self, inputs: Inputs) -> tuple[Tensor, ...]:
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        try:
            self._do(self._main)
            for track in list(self._running):
                self.join(track)
        finally:
            self._leave()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return tuple(output.clone() for output in self._outputs)

    def submit(self, helper: Executor, track: Track) -> None:
        self._running[track] = helper.submit(self._do, track)

    def join(self, track: Track) -> None:
        """Wait for the helper, or do here what it has not begun."""
        running = self._running.pop(track)
        if running.cancel():
            self._do(track)
        else:
            running.result()

    def _leave(self) -> None:
        """After an error: the helper must not go on in memory that others use."""
        for running in self._running.values():
            if not running.cancel():
                running.exception()
        self._running.clear()

    @torch.no_grad()
    def _do(self, track: Track) -> None:
        for action in self._actions[track]:
            action()


class _Handed(Future[Any]):
    """What a helper would do, done while recording; `wait` is called where its result is taken."""

    def __init__(self, wait: Action, result: Any) -> None:
        super().__init__()
        self._wait = wait
        self.set_result(result)

    def result(self, timeout: float | None = None) -> Any:
        self._wait()
        return super().result(timeout)


class Tapes(Executor):
    """The tapes of a trainer. What `run` is given to do hands work to this executor instead of the helper, and says by
    `do` what is not an operation on tensors."""

    def __init__(
        self,
        helper: Executor,
        enabled: bool,
        limit: int = LIMIT,
        held: int = HELD,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._helper, self._enabled, self._limit, self._held, self._warn = helper, enabled, limit, held, warn
        self._tapes: dict[Hashable, Tape] = {}
        self._runs: Counter[Hashable] = Counter()
        self._given_up: set[Hashable] = set()
        self._recorder: Recorder | None = None
        self._current: list[Tape] = []
        self.failures: list[str] = []
        self.played = 0

    def run(self, key: Hashable, inputs: Inputs, work: Work, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
        """`work(*inputs)`, played back if it is known.

        What `work` does must follow from `key`, from the shapes of `inputs` and from the values of tensors that keep
        their memory from one run to the next. It returns tensors, and may set `grad` of `parameters`. Of equal runs,
        the first are done as they are, for they may set things up; then one is recorded. What cannot be recorded is
        done as it is for good.
        """
        if not self._enabled:
            return work(*inputs)
        shapes = tuple(None if given is None else (given.shape, given.stride(), given.dtype) for given in inputs)
        key = (key, shapes, torch.get_num_threads())
        if key in self._tapes:
            self.played += 1
            return self._tapes[key].play(inputs)
        if key in self._given_up or (key not in self._runs and len(self._runs) == MOST):
            return work(*inputs)
        self._runs[key] += 1
        if self._runs[key] <= BEFORE:
            return work(*inputs)
        outputs, tape = self._record(inputs, work, parameters)
        if tape is None:
            self._given_up.add(key)
        else:
            self._tapes[key] = tape
        return outputs

    def _record(
        self, inputs: Inputs, work: Work, parameters: Sequence[nn.Parameter]
    ) -> tuple[tuple[Tensor, ...], Tape | None]:
        own = [None if given is None else given.clone() for given in inputs]
        self._recorder = recorder = Recorder(self._limit)
        current: list[Tape] = []
        self._current = current
        try:
            with recorder:
                outputs = work(*own)
        finally:
            self._recorder = None
        tape = self._compiled(recorder, own, outputs, parameters)
        if tape is None:
            return outputs, None
        current.append(tape)
        return tuple(output.clone() for output in outputs), tape

    def _compiled(
        self, recorder: Recorder, own: Inputs, outputs: tuple[Tensor, ...], parameters: Sequence[nn.Parameter]
    ) -> Tape | None:
        """The tape; None, and a failure noted, if there is none."""
        if recorder.failure is not None:
            self.failures.append(recorder.failure)
            return None
        try:
            check()
            tape = Tape(recorder, own, outputs, parameters)
        except Unplayable as error:
            self._enabled = False
            self.failures.append(str(error))
            self._warn(f"training steps are not recorded, which makes them slower: {error}")
            return None
        if sum(other.bytes for other in self.tapes()) + tape.bytes > self._held:
            self.failures.append(f"all tapes would hold more than {self._held >> 20} MB")
            return None
        return tape

    def forget(self) -> bool:
        """Let go of all tapes. Returns whether they may have been what memory was wanted for: they are small."""
        self._tapes.clear()
        return False

    def tapes(self) -> list[Tape]:
        """All that there are."""
        return list(self._tapes.values())

    def do(self, action: Callable[[], None]) -> None:
        """Something that is not an operation on tensors of `work`: do it now, and in every run."""
        recorder = self._recorder
        with nullcontext() if recorder is None else recorder.paused():
            action()
        if recorder is not None:
            recorder.mark(action)

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hand over to the helper; while recording, it is done at once, with one thread, as the helper has."""
        recorder, current = self._recorder, self._current
        if recorder is None:
            return self._helper.submit(work, *args, **kwargs)
        track = recorder.begin()
        with threads(1):
            result = work(*args, **kwargs)
        recorder.hand_over()
        recorder.mark(lambda: current[0].submit(self._helper, track))

        def wait() -> None:
            if recorder.join(track):
                recorder.mark(lambda: current[0].join(track))

        return _Handed(wait, result)
