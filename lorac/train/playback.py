"""A recording as functions without arguments: the same kernels on the same tensors, with nothing in between.

Every operation writes its result to where it belongs (`out=`); views cost nothing, for they were made when recording.
Runs of operations become graphs of TorchScript's interpreter, which calls a kernel in a microsecond and leaves Python
to the other thread meanwhile; its optimisations are off. What it does not know is called from Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from heapq import heappop, heappush
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lorac.train.recording import Call, Recorder, Track, memory

Action: TypeAlias = Callable[[], object]

FOREIGN = (AttributeError, RuntimeError, TypeError)
"""What calls of TorchScript's own objects raise if a version has others: they are no public interface."""

ALIGNMENT = 64
"""Bytes; torch's own allocations are as good, and matrix products may round otherwise elsewhere."""


class Unplayable(Exception):
    """This version of torch makes no graphs in the way that is known here."""


class Arena:
    """One memory for all that a recording takes: what is no longer needed makes room for what comes later."""

    def __init__(self, lives: Mapping[int, tuple[int, int, int]]) -> None:
        self.places: dict[int, int] = {}
        self.size = 0
        free: list[tuple[int, int]] = []  # (offset, size), ascending
        taken: list[tuple[int, int, int]] = []  # (last, offset, size), a heap
        for key, (first, last, size) in sorted(lives.items(), key=lambda life: life[1]):
            while taken and taken[0][0] < first:
                free = _joined(free, heappop(taken)[1:])
            offset, size = self._find(free, -(-size // ALIGNMENT) * ALIGNMENT)
            heappush(taken, (last, offset, size))
            self.places[key] = offset
        self._storage = torch.empty(self.size, dtype=torch.uint8).untyped_storage()

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor of the same form at its place here."""
        first = self.places[memory(tensor)] // tensor.element_size() + tensor.storage_offset()
        return torch.empty(0, dtype=tensor.dtype).set_(self._storage, first, tensor.shape, tensor.stride())

    def _find(self, free: list[tuple[int, int]], size: int) -> tuple[int, int]:
        for index, (offset, room) in enumerate(free):
            if room >= size:
                free[index : index + 1] = [(offset + size, room - size)] if room > size else []
                return offset, size
        start = self.size
        if free and sum(free[-1]) == self.size:
            start = free.pop()[0]
        self.size = start + size
        return start, size


def _joined(free: list[tuple[int, int]], block: tuple[int, int]) -> list[tuple[int, int]]:
    """`free` with one more block; neighbours become one."""
    joined: list[tuple[int, int]] = []
    for offset, size in sorted([*free, block]):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((offset, size))
    return joined


class Compiler:
    """Makes actions of the tracks of one recording. `kept` are tensors whose values are wanted after it."""

    def __init__(self, recorder: Recorder, kept: Sequence[Tensor]) -> None:
        calls = [call for track in recorder.tracks for call in track.calls()]
        self._uses = Counter(key for call in calls for key in {memory(tensor) for tensor in call.tensors()})
        own = {memory(tensor) for tensor in kept}
        written = {memory(tensor) for call in calls for tensor in call.written()}
        constant = {memory(call.made[0]) for call in calls if call.value is not None and call.made[0] is not None}
        own |= constant - written
        self._constant = constant - written
        self._uses.update(own)
        self.arena = Arena({key: life for key, life in recorder.lives().items() if key not in own})

    def actions(self, track: Track) -> list[Action]:
        """The track as actions that have to be done one after the other."""
        try:
            return self._actions(track)
        except FOREIGN as error:
            raise Unplayable(_explanation(error)) from error

    def _actions(self, track: Track) -> list[Action]:
        actions: list[Action] = []
        graph = _Graph()
        for item in track.items:
            steps = self._lowered(item) if isinstance(item, Call) else [item]
            for step in steps:
                if isinstance(step, _Step) and graph.add(step):
                    continue
                actions += [*graph.actions(), step]
                graph = _Graph()
        return [*actions, *graph.actions()]

    def _lowered(self, call: Call) -> list[_Step]:
        """The call with its results in their places."""
        args = tuple(self._placed(value) for value in call.args)
        kwargs = {name: self._placed(value) for name, value in call.kwargs.items()}
        if not call.made:
            return [_Step(call.function, args, kwargs)]
        made = [None if tensor is None else self._placed(tensor) for tensor in call.made]
        if call.value is not None:
            constant = call.made[0] is not None and memory(call.made[0]) in self._constant
            return [] if constant else [_Step(torch.ops.aten.copy_.default, (made[0], call.value), {})]
        if call.function in _COPIES:
            return [_Step(torch.ops.aten.copy_.default, (made[0], args[0]), {})]
        writing = _writing(call.function)
        if writing is not None and all(tensor is not None for tensor in made):
            function, names = writing
            return [_Step(function, args, {**kwargs, **dict(zip(names, made, strict=True))})]
        wanted = [old is not None and self._uses[memory(old)] > 1 for old in call.made]
        copies = [new if want else None for new, want in zip(made, wanted, strict=True)]
        return [_Step(call.function, args, kwargs, copies)]

    def _placed(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._placed(element) for element in value]
        if not isinstance(value, Tensor):
            return value
        return self.arena.of(value) if memory(value) in self.arena.places else value.detach()


_COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)


class _Step:
    """An operation on tensors in their places. Its results are copied to `copies`, if there are any."""

    def __init__(self, function: Any, args: Any, kwargs: Any, copies: Sequence[Tensor | None] = ()) -> None:
        self.function, self.args, self.kwargs, self.copies = function, args, kwargs, copies

    def __call__(self) -> None:
        results = self.function(*self.args, **self.kwargs)
        results = results if isinstance(results, (tuple, list)) else (results,)
        for copy, result in zip(self.copies, results, strict=False):
            if copy is not None:
                copy.copy_(result)

    def values(self) -> list[Any]:
        """The values of all arguments of the schema. Numbers in the place of tensors become tensors of the results'
        type: the kernel makes the same of them."""
        values = []
        for index, argument in enumerate(self.function._schema.arguments):
            default = self.kwargs.get(argument.name, argument.default_value)
            value = self.args[index] if index < len(self.args) else default
            if isinstance(value, (int, float)) and str(argument.type) == "Tensor":
                value = torch.tensor(value, dtype=self._type())
            values.append(value)
        return values

    def _type(self) -> torch.dtype:
        target: Tensor = self.kwargs["out"] if "out" in self.kwargs else self.args[0]
        return target.dtype


@cache
def _writing(function: Any) -> tuple[Any, list[str]] | None:
    """The overload that writes its results into given tensors and their names, if the kernel itself does so."""
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        arguments = overload._schema.arguments
        outputs = [a.name for a in arguments if a.is_out]
        if outputs and [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return None if torch.Tag.generated in overload.tags else (overload, outputs)
    return None


class _Graph:
    """Operations for TorchScript's interpreter."""

    def __init__(self) -> None:
        self._graph: Any = torch._C.Graph()
        self._constants: dict[int, Any] = {}
        self._steps: list[_Step] = []

    def add(self, step: _Step) -> bool:
        """Append an operation; False if the interpreter does not know it with such arguments."""
        schema = step.function._schema
        try:
            inputs = [self._value(value) for value in step.values()]
            node = self._node(schema.name, inputs, len(schema.returns))
        except (RuntimeError, TypeError):
            return False
        if str(node.schema()) != str(schema):
            node.destroy()
            return False
        for copy, output in zip(step.copies, list(node.outputs()), strict=False):
            if copy is not None:
                self._node("aten::copy_", [self._value(copy), output, self._value(False)], 1)
        self._steps.append(step)
        return True

    def actions(self) -> list[Action]:
        if not self._steps:
            return []
        self._graph.registerOutput(self._value(None))
        function = torch._C._create_function_from_graph("tape", self._graph)

        def play() -> None:
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                function()

        return [play]

    def _node(self, name: str, inputs: list[Any], outputs: int) -> Any:
        node = self._graph.create(name, inputs, outputs)
        self._graph.appendNode(node)
        return node

    def _value(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(element, Tensor) for element in value):
            node = self._node("prim::ListConstruct", [self._value(element) for element in value], 1)
            node.output().setType(torch._C.ListType(torch._C.TensorType.get()))
            return node.output()
        return self._graph.insertConstant(list(value) if isinstance(value, tuple) else value)


@cache
def check() -> None:
    """Play a graph of two operations. Raises Unplayable if that fails or gives something else."""
    x, y = torch.arange(3.0), torch.zeros(3)
    try:
        graph = _Graph()
        known = graph.add(_Step(torch.ops.aten.cat.out, ([x, x[:0]],), {"out": y}))
        known &= graph.add(_Step(torch.ops.aten.mul_.Tensor, (y, 2.0), {}))
        for action in graph.actions():
            action()
    except FOREIGN as error:
        raise Unplayable(_explanation(error)) from error
    if not known or not torch.equal(y, 2 * x):
        raise Unplayable(f"graphs of torch {torch.__version__} do not do what they should")


def _explanation(error: Exception) -> str:
    return f"torch {torch.__version__} makes no graph ({error})"
