"""Modules that stand where a model's own were, and run fused operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lorac.sd.blocks import Upsample
from lorac.train.fused.convolution import FusedConvolution, FusedUpsample
from lorac.train.fused.operation import Graph
from lorac.train.fused.resnet import FusedResnet
from lorac.train.fused.text import FusedTextLayer
from lorac.train.fused.transformer import CaptionKeysValues, FusedTransformer


class TextLayer(nn.Module):
    """Stands in for a layer of transformers' CLIP."""

    def __init__(self, graph: Graph, operation: FusedTextLayer) -> None:
        super().__init__()
        self._graph, self._operation = graph, operation

    def forward(self, x_BLC: Tensor, *_: Any, **__: Any) -> Tensor:
        return self._graph.train(self._operation, x_BLC)


class Caption:
    """Keys and values of some transformers, computed at the first of them in a pass through the U-Net.

    `channels`: how many the keys and values of each transformer have together.
    """

    def __init__(self, graph: Graph, operation: CaptionKeysValues, channels: list[int]) -> None:
        self._run = graph.train if operation.records else graph.call
        self._operation, self._channels = operation, channels
        self._parts: tuple[Tensor, ...] = ()

    def keys_values(self, ctx_BSD: Tensor, number: int) -> Tensor:
        """Those of transformer `number`."""
        if not self._parts:
            self._parts = self._run(self._operation, ctx_BSD).split_with_sizes(self._channels)
        return self._parts[number]

    def forget(self, *_: object) -> None:
        """At the end of a pass: the next has other factors or another caption."""
        self._parts = ()


class TransformerStandIn(nn.Module):
    """Stands in for a transformer of the U-Net."""

    def __init__(self, graph: Graph, operation: FusedTransformer, caption: Caption, number: int) -> None:
        super().__init__()
        self._run = graph.train if operation.records else graph.call
        self._operation, self._caption, self._number = operation, caption, number

    def forward(self, x_BCHW: Tensor, ctx_BSD: Tensor) -> Tensor:
        return self._run(self._operation, x_BCHW, self._caption.keys_values(ctx_BSD, self._number))


class ResnetStandIn(nn.Module):
    """Stands in for a resnet of the U-Net, whose projection of the time it keeps."""

    def __init__(self, graph: Graph, operation: FusedResnet, time_emb_proj: nn.Module) -> None:
        super().__init__()
        self.time_emb_proj = time_emb_proj
        self._graph, self._operation = graph, operation

    def forward(self, x_BCHW: Tensor, t_BC11: Tensor) -> Tensor:
        return self._graph.call(self._operation, x_BCHW, t_BC11)


class Convolution(nn.Module):
    """Stands in for a 3×3 convolution."""

    def __init__(self, graph: Graph, operation: FusedConvolution) -> None:
        super().__init__()
        self._graph, self._operation = graph, operation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._graph.call(self._operation, x_BCHW)


class UpsampleStandIn(nn.Module):
    """Stands in for an enlargement; where a skip connection is odd, that very module."""

    def __init__(self, graph: Graph, operation: FusedUpsample, upsample: Upsample) -> None:
        super().__init__()
        self._graph, self._operation, self._upsample = graph, operation, upsample

    def forward(self, x_BCHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
        height, width = x_BCHW.shape[2:]
        if tuple(size_HW) != (2 * height, 2 * width):
            enlarged: Tensor = self._upsample(x_BCHW, size_HW)
            return enlarged
        return self._graph.call(self._operation, x_BCHW)
