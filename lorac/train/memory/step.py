"""A forward and backward pass through the base, in the order of `lorac.sd.unet`."""

from __future__ import annotations

from typing import Any

from lorac.train.fused import choice
from lorac.train.memory.meter import Block, Meter
from lorac.train.memory.operations import Linear, Resnet, Transformer
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import TOKENS, Unit, steps
from lorac.train.switches import Recompute


def activations(run: Run, plan: Plan) -> tuple[int, int, int, int]:
    """Bytes: (what is kept from forward to backward, the peak of one pass with it, scratch of the convolutions that
    stays, copies of weights that fused operations make)."""
    return _Pass(run, plan).run()


class _Pass:
    """One pass of `samples` pictures."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self._m = Meter(run.element, plan.recompute < Recompute.ELEMENTWISE)
        self._casts = run.cuda and not run.merged and plan.recompute >= Recompute.TRANSFORMER
        self._samples = len(run.networks) * -(-run.batch // plan.split)
        self._shapes: list[choice.Shape] = []

    def run(self) -> tuple[int, int, int, int]:
        m = self._m
        text = self._text_forward()
        context = m.new(self._samples * self._states * self._run.sizes.context)
        captions = self._captions()
        done, skips = [], []
        x = self._map(self._run.sizes.width, 0)
        self._convolution(self._run.sizes.latent, self._run.sizes.width, 0)
        skips.append(x)
        for unit in steps(self._run.sizes):
            if unit.skip:
                skip = skips.pop()
                x = self._map(unit.inputs, unit.level)  # a copy of both
                del skip
            operation = self._operation(unit)
            x, saved = operation.forward(m, x)
            done.append((operation, unit, saved))
            del saved
            if unit.keeps:
                skips.append(x)
        c = self._run.sizes.width
        normed = self._map(c, 0)
        silu = self._map(c, 0)
        self._convolution(c, self._run.sizes.latent, 0)
        kept = m.now
        dy = self._map(c, 0)
        dy = self._map(c, 0)
        del normed, silu, x
        self._back(done, dy)
        del context, captions
        self._text_back(text)
        cpu, element = not self._run.cuda, self._run.element
        scratch = choice.scratch_bytes(self._shapes, cpu=cpu, element=element)
        copies = sum(choice.weight_bytes([shape], cpu=cpu, element=element) for shape in self._shapes)
        return kept, m.peak, scratch, copies

    def _back(self, done: list[Any], dy: Block) -> None:
        gradients: list[Block] = []
        lowest = next((n for n, (operation, _, _) in enumerate(done) if isinstance(operation, Transformer)), len(done))
        while len(done) > lowest:
            operation, unit, saved = done.pop()
            if unit.keeps and gradients:
                gradients.pop()
            dx = operation.backward(self._m, saved, dy, len(done) > lowest)
            del saved
            if unit.skip and dx is not None:
                gradients.append(dx)
            dy = dx
            del dx

    @property
    def _states(self) -> int:
        return TOKENS * self._run.chunks

    def _size(self, level: int) -> tuple[int, int]:
        """Pixels at a level: halving rounds up."""
        height, width = self._run.height // 8, self._run.width // 8
        for _ in range(level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def _map(self, channels: int, level: int) -> Block:
        height, width = self._size(level)
        return self._m.new(self._samples * channels * height * width)

    def _convolution(self, inputs: int, outputs: int, level: int, stride: int = 1, enlarged: bool = False) -> None:
        height, width = self._size(level)
        self._shapes.append(choice.Shape(self._samples, inputs, outputs, height, width, stride, enlarged))

    def _operation(self, unit: Unit) -> Any:
        height, width = self._size(unit.level)
        pixels, level = height * width, self._plan.recompute
        if unit.kind == "transformer":
            return self._transformer(unit, pixels, level)
        if unit.kind == "resnet":
            self._convolution(unit.inputs, unit.channels, unit.level)
            self._convolution(unit.channels, unit.channels, unit.level)
            return Resnet(
                unit.inputs, unit.channels, self._samples, pixels, level, not self._run.cuda, self._run.kernels
            )
        enlarged = unit.kind == "up"
        self._convolution(
            unit.inputs, unit.channels, unit.level + (1 if enlarged else -1), 1 if enlarged else 2, enlarged
        )
        before = self._size(unit.level + (1 if enlarged else -1))
        return _Resample(self._samples * unit.inputs * before[0] * before[1], self._samples * unit.channels * pixels)

    def _linear(self, path: str, modules: int = 1) -> Linear:
        outputs, inputs = self._run.sizes.module(path)
        rank = self._run.ranks.get(path, 0)
        casts = self._run.element if self._casts else 0
        return Linear(inputs, outputs * modules, rank, modules, self._run.merged, len(self._run.networks), casts)

    def _transformer(self, unit: Unit, pixels: int, level: Recompute) -> Transformer:
        inner = f"{unit.path}.transformer_blocks.0."
        return Transformer(
            unit.channels,
            self._run.sizes.heads,
            self._samples,
            pixels,
            self._states,
            self._linear(f"{unit.path}.proj_in"),
            self._linear(f"{inner}attn1.to_q", 3),
            self._linear(f"{inner}attn1.to_out.0"),
            self._linear(f"{inner}attn2.to_q"),
            self._linear(f"{inner}attn2.to_out.0"),
            self._linear(f"{inner}ff.net.0.proj"),
            self._linear(f"{inner}ff.net.2"),
            self._linear(f"{unit.path}.proj_out"),
            level,
            self._run.cuda,
            self._run.kernels,
        )

    def _captions(self) -> list[Block]:
        """Keys and values of all transformers."""
        count = self._samples * self._states
        return [self._m.new(count * 2 * u.channels) for u in steps(self._run.sizes) if u.kind == "transformer"]

    def _text_forward(self) -> list[Any]:
        """What the layers of the text encoder keep, as `lorac.train.fused.text` has it."""
        if not self._run.text:
            return []
        return [self._m.new(self._text_kept(self._plan.recompute)) for _ in range(self._run.sizes.text_layers - 1)]

    def _text_kept(self, level: Recompute) -> int:
        sizes, r = self._run.sizes, self._samples * self._states
        c, f = sizes.text, sizes.text_inner
        if level >= Recompute.TRANSFORMER:
            return r * c
        sums = 4 * r * sizes.text_heads // self._run.element
        softmax = sums if self._run.cuda else r * sizes.text_heads * TOKENS
        kept = r * (6 * c + f) + softmax  # h1, q k v, a, h2, u
        return kept if level >= Recompute.ELEMENTWISE else kept + r * (2 * c + f)  # n1, n2, f

    def _text_back(self, kept: list[Any]) -> None:
        sizes, r = self._run.sizes, self._samples * self._states
        again = self._text_kept(Recompute.ELEMENTWISE) if self._plan.recompute >= Recompute.TRANSFORMER else 0
        while kept:
            temporary = self._m.new(again + r * (6 * sizes.text + 2 * sizes.text_inner))
            del temporary
            kept.pop()


class _Resample:
    """A down- or upsampling: keeps nothing."""

    def __init__(self, before: int, after: int) -> None:
        self._before, self._after = before, after

    def forward(self, m: Meter, x: Block) -> tuple[Block, Any]:
        return m.new(self._after), ()

    def backward(self, m: Meter, saved: Any, dy: Block, needs: bool) -> Block | None:
        return m.new(self._before)
