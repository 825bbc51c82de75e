"""The fused form of training: transformers, resnets and text layers as single operations, factors outside of autograd.

A step of a small base at batch 1 is bound by the number of operations: here a transformer is one node of the graph
instead of a hundred. A step of a large one is bound by products and memory: here nothing is computed or kept that the
frozen base does not need. What only the LoRAs need (gradients of weights, then of factors) is done for whole stacks.
`LoRANetwork` in its added form is the definition; a test compares every gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor

from lorac.sd.clip import TextEncoder
from lorac.sd.layers import Linear
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import Part
from lorac.sd.unet import UNet
from lorac.train.fused.backends import Choice
from lorac.train.fused.convolution import FusedConvolution, FusedUpsample
from lorac.train.fused.frozen import Beside, Frozen, Product
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.joint import JointStack, joint_stacks
from lorac.train.fused.linear import Adapted
from lorac.train.fused.operation import Graph
from lorac.train.fused.resnet import FusedResnet
from lorac.train.fused.scratch import Scratch
from lorac.train.fused.stand_ins import (
    Caption,
    Convolution,
    ResnetStandIn,
    TextLayer,
    TransformerStandIn,
    UpsampleStandIn,
)
from lorac.train.fused.text import FusedTextLayer
from lorac.train.fused.transformer import CaptionKeysValues, FusedTransformer
from lorac.train.switches import Recompute, Switches

TO_K, TO_V = (f"transformer_blocks.0.attn2.{name}" for name in ("to_k", "to_v"))


class Fused:
    """The fused forms of a model for some LoRAs of the same modules, put in place of its modules.

    A batch holds equally many samples of each LoRA: first those of the first, then those of the second. The U-Net is
    fused whatever is trained, because the gradient of a caption comes through it; a text encoder that is not trained,
    if each LoRA has its own part of it. Work that the chain of layers does
    not wait for is given to `helper`, an executor of one thread.
    """

    def __init__(
        self,
        unet: UNet,
        text_encoder: TextEncoder,
        loras: Sequence[LoRANetwork],
        trained: Collection[str],
        helper: Executor,
        switches: Switches,
    ) -> None:
        self._helper, self._switches = helper, switches
        usual = Recompute.NOTHING if loras[0].merged else Recompute.ELEMENTWISE
        self.recompute = usual if switches.recompute is None else switches.recompute
        self.scratch, self._graph = Scratch(), Graph()
        self.attention = Choice(switches.attention)
        self._started: list[tuple[Future[list[Tensor]], Callable[[], list[Tensor]]]] = []
        self._over: set[StackGradients] = set()
        self._stacks: list[StackGradients] = []
        self._adapted: list[Adapted] = []
        self._places: dict[tuple[Part, str], tuple[StackGradients | Untrained, int]] = {}
        for stack in joint_stacks(loras, copies=self.recompute < Recompute.TRANSFORMER):
            gradients: StackGradients | Untrained = Untrained(stack)
            if stack.part in trained:
                gradients = StackGradients(stack, self._start)
                self._stacks.append(gradients)
            for index, target in enumerate(stack.targets):
                self._places[stack.part, target.path] = (gradients, index)
        if "text_encoder" in trained or (len(loras) > 1 and any(part == "text_encoder" for part, _ in self._places)):
            self._fuse_text_encoder(text_encoder)
        self._fuse_unet(unet)

    def start(self, accumulating: bool) -> None:
        """Before forward: whether the next gradients are added to those that the factors have."""
        for gradients in self._stacks:
            gradients.accumulating = accumulating

    def finish(self) -> list[Tensor]:
        """After backward: set the gradients of all factors; returns for each LoRA the norm of all of them."""
        for gradients in self._stacks:
            if gradients not in self._over:
                self._start(gradients, last=True)
        self._over.clear()
        norms: list[list[Tensor]] = []
        while self._started:
            # What the helper has not begun is done here, from the end of its queue.
            started, work = self._started.pop()
            norms.append(work() if started.cancel() else started.result())
        return [torch.linalg.vector_norm(torch.cat(of_pieces)) for of_pieces in zip(*norms, strict=True)]

    def forget(self) -> None:
        """After a pass that was not finished: let go of what was kept for backward, and of what that recorded."""
        for started, _ in self._started:
            if not started.cancel():
                started.exception()
        self._started.clear()
        self._over.clear()
        for gradients in self._stacks:
            gradients.forget()
        for layer in self._adapted:
            layer.forget()
        self.scratch.forget()

    def _start(self, gradients: StackGradients, last: bool = False) -> None:
        if last or gradients.complete:
            self._over.add(gradients)
        work = gradients.piece(last)
        self._started.append((self._helper.submit(work), work))

    def _fuse_text_encoder(self, text_encoder: TextEncoder) -> None:
        layers = text_encoder.text_model.encoder.layers
        for i, layer in enumerate(layers):
            find = self._below("text_encoder", text_encoder, f"text_model.encoder.layers.{i}")
            heads = text_encoder.config.heads
            fused = FusedTextLayer(layer, heads, find, self.recompute, self.attention)
            layers[i] = TextLayer(self._graph, fused)

    def _fuse_unet(self, unet: UNet) -> None:
        graph, more = self._graph, (self.scratch, self._switches)
        # All layers are found before the first stand-in hides some.
        transformers = {path: self._transformer(unet, path) for path in _transformers(unet)}
        captions = self._captions(unet, list(transformers))
        unet.join_time_projections()
        unet.conv_out = Convolution(graph, FusedConvolution(unet.conv_out, *more))  # type: ignore[assignment]
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            for i, resnet in enumerate(block.resnets):
                operation = FusedResnet(resnet, *more, self.recompute)
                block.resnets[i] = ResnetStandIn(graph, operation, resnet.time_emb_proj)
            for downsample in getattr(block, "downsamplers", ()):
                downsample.conv = Convolution(graph, FusedConvolution(downsample.conv, *more))
            for j, upsample in enumerate(getattr(block, "upsamplers", ())):
                block.upsamplers[j] = UpsampleStandIn(graph, FusedUpsample(upsample.conv, *more), upsample)
        for path, transformer in transformers.items():
            unet.set_submodule(path, TransformerStandIn(graph, transformer, *captions[path]))

    def _transformer(self, unet: UNet, path: str) -> FusedTransformer:
        module: Any = unet.get_submodule(path)
        return FusedTransformer(module, self._below("unet", unet, path), self.recompute, self.attention)

    def _captions(self, unet: UNet, paths: list[str]) -> dict[str, tuple[Caption, int]]:
        """Where each transformer finds its keys and values: with those of all others of a stack, or alone."""
        found: dict[str, tuple[Caption, int]] = {}
        groups: dict[object, list[str]] = {}
        for path in paths:
            place = self._places.get(("unet", f"{path}.{TO_K}"))
            groups.setdefault(place[0] if place and self._switches.joined else path, []).append(path)
        for group in groups.values():
            names = [f"{path}.{name}" for path in group for name in (TO_K, TO_V)]
            layer = self._layer("unet", unet, names)
            caption = Caption(self._graph, CaptionKeysValues(layer), [2 * _width(unet, path) for path in group])
            unet.register_forward_hook(caption.forget, always_call=True)
            found |= {path: (caption, number) for number, path in enumerate(group)}
        return found

    def _below(self, part: Part, model: UNet | TextEncoder, path: str) -> Callable[[str, int], Any]:
        """How the module at `path` finds its layers: `count` neighbours from `name` on."""

        def find(name: str, count: int) -> Product:
            place = f"{path}.{name}"
            parent, _, last = place.rpartition(".")
            names = [f"{parent}.{other}" for other in _NEIGHBOURS[last][:count]] if count > 1 else [place]
            return self._layer(part, model, names)

        return find

    def _layer(self, part: Part, model: UNet | TextEncoder, names: list[str]) -> Product:
        """Modules that share their input, as one layer."""
        if len(names) > 1 and not (self._switches.joined and self._are_neighbours(part, names)):
            return Beside([self._layer(part, model, [name]) for name in names])
        if (part, names[0]) not in self._places:
            layer: Any = model.get_submodule(names[0])
            assert isinstance(layer, Linear)
            return Frozen(layer)
        gradients, first = self._places[part, names[0]]
        adapted = Adapted(gradients, first, len(names), self.recompute)  # type: ignore[arg-type]
        adapted.records = isinstance(gradients, StackGradients)
        self._adapted.append(adapted)
        return adapted

    def _are_neighbours(self, part: Part, names: list[str]) -> bool:
        """Whether modules lie one after the other in one stack."""
        places = [self._places.get((part, name)) for name in names]
        gradients, first = places[0] or (None, 0)
        return all(place == (gradients, first + i) for i, place in enumerate(places))


class Untrained:
    """Stands in for the gradients of a stack that is not trained."""

    def __init__(self, stack: JointStack) -> None:
        self.stack = stack

    def record(self, *_: object) -> None:
        """Nothing learns from it."""


_NEIGHBOURS = {"to_q": ("to_q", "to_k", "to_v"), "k_proj": ("k_proj", "v_proj", "q_proj")}
"""Layers that share their input, in the order of kohya's modules, from the first of them on."""


def _transformers(unet: UNet) -> Iterator[str]:
    """Paths, in the order of the modules."""
    blocks: list[tuple[str, Any]] = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)]
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    for name, block in blocks:
        yield from (f"{name}.attentions.{i}" for i in range(len(block.attentions)))


def _width(unet: UNet, path: str) -> int:
    """Channels of a transformer's keys."""
    layer: Any = unet.get_submodule(f"{path}.{TO_K}")
    return len(layer.weight)
