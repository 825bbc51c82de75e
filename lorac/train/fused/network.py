"""Training a LoRA in the merged form: transformers and text layers as single operations, factors outside of autograd.

A step of a small base at batch 1 is bound by the number of operations. Here a transformer is one node of the graph
instead of a hundred, and what only the LoRA needs (gradients of weights, then of factors) is done for whole stacks.
`LoRANetwork` in its added form is the definition; a test compares every gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorac.sd.blocks import Resnet, Upsample
from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork
from lorac.sd.unet import UNet
from lorac.train.fused.convolution import FusedConvolution, FusedUpsample, Patches
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.linear import Adapted
from lorac.train.fused.resnet import FusedResnet
from lorac.train.fused.text import FusedTextLayer
from lorac.train.fused.transformer import CaptionKeysValues, FusedTransformer


class Operation(Protocol):
    """A function of tensors that knows its gradient.

    `forward` returns its output and what backward needs: nested tuples of tensors. `needs` says of each input whether
    its gradient is wanted; where it is not, `backward` may return None.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Any, ...]]: ...

    def backward(
        self, saved: tuple[Any, ...], gradient: Tensor, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]: ...


class _Call(torch.autograd.Function):
    """An `Operation` in the autograd graph. An `anchor` that requires gradients makes backward run whatever the
    inputs: an operation with factors needs one."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, anchor: Tensor | None, *inputs: Tensor) -> Tensor:
        output: Tensor
        output, ctx.saved = operation.forward(*inputs)
        ctx.operation = operation
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *ctx.operation.backward(ctx.saved, *gradients, ctx.needs_input_grad[2:])


class Fused:
    """The fused forms of the trained parts of a model, put in place of its modules.

    Work that the chain of layers does not wait for is given to `helper`, an executor of one thread.
    """

    def __init__(
        self, unet: UNet, text_encoder: TextEncoder, lora: LoRANetwork, trained: Collection[str], helper: Executor
    ) -> None:
        self._lora, self._helper = lora, helper
        self.patches = Patches()
        self._anchor = torch.ones(0, requires_grad=True)
        self._stacks = [StackGradients(stack, self._start) for stack in lora.stacks if stack.part in trained]
        self._started: dict[StackGradients, Future[tuple[Tensor, Tensor]]] = {}
        self._places = {
            target.path: (gradients, index)
            for gradients in self._stacks
            for index, target in enumerate(gradients.stack.targets)
        }
        if "text_encoder" in trained:
            self._fuse_text_encoder(text_encoder)
        if "unet" in trained:
            self._fuse_unet(unet)

    def call(self, operation: Any, *inputs: Tensor) -> Tensor:
        """An operation without factors: where no input has a gradient, nothing is kept and there is no backward."""
        output: Tensor = _Call.apply(operation, None, *inputs)  # type: ignore[no-untyped-call]
        return output

    def train(self, operation: Any, *inputs: Tensor) -> Tensor:
        """An operation whose factors are trained: backward runs even if no input wants a gradient."""
        output: Tensor = _Call.apply(operation, self._anchor, *inputs)  # type: ignore[no-untyped-call]
        return output

    def start(self, accumulating: bool) -> None:
        """Before forward: whether the next gradients are added to those that the factors have."""
        for gradients in self._stacks:
            gradients.accumulating = accumulating

    def finish(self) -> Tensor:
        """After backward: set the gradients of all factors; returns the norm of all of them."""
        for gradients in self._stacks:
            if gradients not in self._started:
                self._start(gradients)
        norms: dict[StackGradients, tuple[Tensor, Tensor]] = {}
        for gradients, started in reversed(self._started.items()):
            # What the helper has not begun is done here, from the end of its queue.
            norms[gradients] = gradients.finish() if started.cancel() else started.result()
        self._started.clear()
        total: Tensor = torch.linalg.vector_norm(torch.stack([n for stack in self._stacks for n in norms[stack]]))
        return total

    def merge(self, part: str) -> None:
        """Put the current factors of a part into its layers."""
        for stack in self._lora.stacks:
            if stack.part == part:
                stack.merge()

    def _start(self, gradients: StackGradients) -> None:
        self._started[gradients] = self._helper.submit(gradients.finish)

    def _below(self, path: str) -> Callable[[str, int], Adapted]:
        """How the module at `path` finds its adapted layers."""

        def adapted(name: str, count: int) -> Adapted:
            gradients, first = self._places[f"{path}.{name}"]
            return Adapted(gradients, first, count)

        return adapted

    def _fuse_text_encoder(self, text_encoder: TextEncoder) -> None:
        layers = text_encoder.text_model.encoder.layers
        for i, layer in enumerate(layers):
            operation = FusedTextLayer(layer, text_encoder.config.heads, self._below(f"text_model.encoder.layers.{i}"))
            layers[i] = _TextLayer(self, operation)

    def _fuse_unet(self, unet: UNet) -> None:
        blocks: dict[str, Any] = {f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)}
        blocks |= {"mid_block": unet.mid_block}
        blocks |= {f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)}
        unet.conv_out = _Convolution(self, unet.conv_out)  # type: ignore[assignment]
        captions: dict[StackGradients, _Caption] = {}
        for name, block in blocks.items():
            for i, resnet in enumerate(block.resnets):
                block.resnets[i] = _Resnet(self, resnet)
            for downsample in getattr(block, "downsamplers", ()):
                downsample.conv = _Convolution(self, downsample.conv)
            for j, upsample in enumerate(getattr(block, "upsamplers", ())):
                block.upsamplers[j] = _Upsample(self, upsample)
            for i, transformer in enumerate(block.attentions):
                path = f"{name}.attentions.{i}"
                if f"{path}.proj_in" not in self._places:
                    continue  # a block that the recipe leaves out stays as it is
                gradients, index = self._places[f"{path}.transformer_blocks.0.attn2.to_k"]
                caption = captions.setdefault(gradients, _Caption(self, gradients))
                operation = FusedTransformer(transformer, self._below(path))
                block.attentions[i] = _Transformer(self, operation, caption, index // 2)


class _TextLayer(nn.Module):
    """Stands in for a layer of transformers' CLIP."""

    def __init__(self, fused: Fused, operation: FusedTextLayer) -> None:
        super().__init__()
        self._fused, self._operation = fused, operation

    def forward(self, x_BLC: Tensor, *_: Any, **__: Any) -> Tensor:
        return self._fused.train(self._operation, x_BLC)


class _Caption:
    """Keys and values of a level, computed once for each caption tensor."""

    def __init__(self, fused: Fused, gradients: StackGradients) -> None:
        self._fused, self._operation = fused, CaptionKeysValues(gradients)
        modules, channels, _ = gradients.stack.merged_MOI.shape
        self._sizes = [2 * channels] * (modules // 2)
        self._context: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()

    def keys_values(self, ctx_BSD: Tensor, number: int) -> Tensor:
        """Those of the level's transformer `number`."""
        if ctx_BSD is not self._context:
            self._context = ctx_BSD
            self._parts = self._fused.train(self._operation, ctx_BSD).split_with_sizes(self._sizes)
        return self._parts[number]


class _Transformer(nn.Module):
    """Stands in for a transformer of the U-Net."""

    def __init__(self, fused: Fused, operation: FusedTransformer, caption: _Caption, number: int) -> None:
        super().__init__()
        self._fused, self._operation, self._caption, self._number = fused, operation, caption, number

    def forward(self, x_BCHW: Tensor, ctx_BSD: Tensor) -> Tensor:
        return self._fused.train(self._operation, x_BCHW, self._caption.keys_values(ctx_BSD, self._number))


class _Resnet(nn.Module):
    """Stands in for a resnet of the U-Net, whose projection of the time it keeps."""

    def __init__(self, fused: Fused, resnet: Resnet) -> None:
        super().__init__()
        self.time_emb_proj = resnet.time_emb_proj
        self._fused, self._operation = fused, FusedResnet(resnet, fused.patches)

    def forward(self, x_BCHW: Tensor, t_BC11: Tensor) -> Tensor:
        return self._fused.call(self._operation, x_BCHW, t_BC11)


class _Convolution(nn.Module):
    """Stands in for a 3×3 convolution."""

    def __init__(self, fused: Fused, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._fused, self._operation = fused, FusedConvolution(convolution, fused.patches)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._fused.call(self._operation, x_BCHW)


class _Upsample(nn.Module):
    """Stands in for an enlargement; where a skip connection is odd, that very module."""

    def __init__(self, fused: Fused, upsample: Upsample) -> None:
        super().__init__()
        self._fused, self._upsample = fused, upsample
        self._operation = FusedUpsample(upsample.conv, fused.patches)

    def forward(self, x_BCHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
        height, width = x_BCHW.shape[2:]
        if tuple(size_HW) != (2 * height, 2 * width):
            enlarged: Tensor = self._upsample(x_BCHW, size_HW)
            return enlarged
        return self._fused.call(self._operation, x_BCHW)
