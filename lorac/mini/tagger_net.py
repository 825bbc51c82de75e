"""The mini tagger's network, and how it is written as an ONNX file in the form of WD14's.

Shape suffixes: B batch, C channels, H height, W width, T tags.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (24, 48, 96, 160)
"""Channels at a half, a quarter, an eighth and a sixteenth of the picture's side."""
OPSET = 17


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; the first may halve the sides and change the channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        z_BCHW = self.norm2(self.conv2(y_BCHW))
        # A block that halves has its own first half as the shortcut: one convolution less.
        return F.relu(z_BCHW + (x_BCHW if self.stride == 1 else y_BCHW))


class TaggerNet(nn.Module):
    """(B, 3, 128, 128) BGR in [0, 1] to (B, T) logits.

    The average over the picture says what there is much of, the maximum whether a small thing is there at all.
    """

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 5, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.blocks = nn.ModuleList()
        for before, after in pairwise(WIDTHS):
            self.blocks += [Block(before, after), Block(after, after)]
        self.head = nn.Linear(2 * WIDTHS[-1], tags)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.norm(self.stem(x_BCHW)))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        logits_BT: Tensor = self.head(torch.cat([x_BCHW.mean(dim=(2, 3)), x_BCHW.amax(dim=(2, 3))], dim=1))
        return logits_BT


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does what `conv` and then `norm` do at inference."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


@torch.no_grad()
def write_onnx(net: TaggerNet, size: int, path: Path) -> None:
    """Writes the network with WD14's interface: (batch, size, size, 3) BGR of 0..255 in, (batch, T) probabilities out.

    The dependency `onnx` is needed for this and for nothing else.
    """
    from onnx import TensorProto, checker, helper, numpy_helper, save

    nodes, initialisers = [helper.make_node("Transpose", ["input"], ["x0"], perm=[0, 3, 1, 2])], []
    count = 0

    def constant(name: str, tensor: Tensor) -> str:
        initialisers.append(numpy_helper.from_array(np.ascontiguousarray(tensor.numpy(), np.float32), name))
        return name

    def node(kind: str, *inputs: str, **attributes: object) -> str:
        nonlocal count
        count += 1
        nodes.append(helper.make_node(kind, list(inputs), [f"x{count}"], **attributes))
        return f"x{count}"

    def convolved(x: str, name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, scale: float = 1.0) -> str:
        weight, bias = folded(conv, norm)
        side, pad = conv.kernel_size[0], int(conv.padding[0])
        inputs = (x, constant(f"{name}.weight", weight * scale), constant(f"{name}.bias", bias))
        return node("Conv", *inputs, kernel_shape=[side, side], strides=list(conv.stride), pads=[pad] * 4)

    x = node("Relu", convolved("x0", "stem", net.stem, net.norm, 1 / 255))
    for number, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        y = node("Relu", convolved(x, f"blocks.{number}.conv1", block.conv1, block.norm1))
        z = convolved(y, f"blocks.{number}.conv2", block.conv2, block.norm2)
        x = node("Relu", node("Add", z, x if block.stride == 1 else y))
    both = node("Concat", node("GlobalAveragePool", x), node("GlobalMaxPool", x), axis=1)
    weight, bias = constant("head.weight", net.head.weight), constant("head.bias", net.head.bias)
    logits = node("Gemm", node("Flatten", both), weight, bias, transB=1)
    nodes.append(helper.make_node("Sigmoid", [logits], ["predictions"]))
    pixels = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", size, size, 3])
    found = helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["batch", net.head.out_features])
    graph = helper.make_graph(nodes, "tagger", [pixels], [found], initialisers)
    model = helper.make_model(
        graph, producer_name="lorac", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )
    checker.check_model(model)
    save(model, path)
