"""Frozen resnets that keep less for backward: against autograd in float64, and how much they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.sd.blocks import Resnet
from lorac.train.fused.resnet import FusedResnet
from lorac.train.fused.scratch import Scratch
from lorac.train.switches import Recompute, Switches
from tests.test_winograd import allow


def tensors_in(saved: Any) -> Iterator[Tensor]:
    if isinstance(saved, Tensor):
        yield saved
    elif isinstance(saved, tuple):
        for part in saved:
            yield from tensors_in(part)


def resnet(inputs: int, outputs: int) -> Resnet:
    torch.manual_seed(1)
    module = Resnet(inputs, outputs, groups=4, eps=1e-5, time_channels=12).double().requires_grad_(False)
    for norm in (module.norm1, module.norm2):
        norm.weight.normal_(1.0, 0.3)
        norm.bias.normal_()
    return module


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("outputs", [16, 24])
@pytest.mark.parametrize("minimal", [True, False])
def test_a_resnet_that_computes_again(
    recompute: Recompute, outputs: int, minimal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, minimal, True)
    module = resnet(16, outputs)
    x_BCHW, t_BO11 = torch.randn(2, 16, 6, 5).double().requires_grad_(), torch.randn(2, outputs, 1, 1).double()
    expected = module(x_BCHW, t_BO11)
    dy_BOHW = torch.randn_like(expected)
    (expected_dx,) = torch.autograd.grad(expected, x_BCHW, dy_BOHW)
    x_BCHW, kept_dy = x_BCHW.detach(), dy_BOHW.clone()
    kept_x = x_BCHW.clone()
    operation = FusedResnet(module, Scratch(), Switches(), recompute)
    ours, saved = operation.forward(x_BCHW, t_BO11)
    torch.testing.assert_close(ours, expected)
    assert operation.backward(saved, dy_BOHW, (False, False)) == (None, None)
    for _ in range(2):  # what was saved is left as it is
        dx_BCHW, nothing = operation.backward(saved, dy_BOHW, (True, False))
        torch.testing.assert_close(dx_BCHW, expected_dx)
        assert nothing is None
    assert torch.equal(x_BCHW, kept_x)
    assert torch.equal(dy_BOHW, kept_dy)


def test_what_a_resnet_keeps() -> None:
    """Of an input of C channels and O outputs: 2 C + 2 O numbers for each pixel, then C + O, then C; the gradients are
    the same to the bit."""
    module = resnet(16, 24).float()
    x_BCHW, t_BO11 = torch.randn(2, 16, 8, 8), torch.randn(2, 24, 1, 1)
    dy_BOHW = torch.randn(2, 24, 8, 8)
    maps, gradients = {}, []
    for recompute in (Recompute.NOTHING, Recompute.ELEMENTWISE, Recompute.TRANSFORMER, Recompute.BLOCK):
        operation = FusedResnet(module, Scratch(), Switches(), recompute)
        _, saved = operation.forward(x_BCHW, t_BO11)
        kept = {tensor.data_ptr(): tensor.numel() for tensor in tensors_in(saved) if tensor.shape[2:] == (8, 8)}
        maps[recompute.name] = sum(kept.values()) // (2 * 8 * 8)
        (dx_BCHW, _) = operation.backward(saved, dy_BOHW, (True, False))
        assert dx_BCHW is not None
        gradients.append(dx_BCHW)
    assert maps == {"NOTHING": 80, "ELEMENTWISE": 40, "TRANSFORMER": 40, "BLOCK": 16}
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
