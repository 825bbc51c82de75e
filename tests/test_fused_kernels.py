"""Fused operations with Triton's kernels in them, where a card would have them, against autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lorac.kernels import gate

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.train.fused.resnet import FusedResnet
from lorac.train.fused.scratch import Scratch
from lorac.train.member import Member
from lorac.train.slices import Step
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches
from tests.kernels import close
from tests.small import base
from tests.test_fused_resnet import resnet
from tests.test_fused_transformer import CHANNELS, CONTEXT, fused, transformer
from tests.test_tape import pictures, sample

TOLERANCE = {"cpu": 1e-5, "cuda": 5e-3}  # a card's convolutions round to TF32
LEVELS = [Recompute.NOTHING, Recompute.ELEMENTWISE, Recompute.BLOCK]


@pytest.mark.parametrize("recompute", LEVELS)
@pytest.mark.parametrize("outputs", [16, 24])
def test_a_resnet(kernels: str, recompute: Recompute, outputs: int) -> None:
    module = resnet(16, outputs)
    x_BCHW = torch.randn(1, 16, 6, 5, dtype=torch.float64, requires_grad=True)
    t_BO11 = torch.randn(1, outputs, 1, 1, dtype=torch.float64)
    expected = module(x_BCHW, t_BO11)
    dy_BOHW = torch.randn_like(expected)
    (expected_dx,) = torch.autograd.grad(expected, x_BCHW, dy_BOHW)
    operation = FusedResnet(copy.deepcopy(module).to(kernels, torch.float32), Scratch(), Switches(), recompute)
    x, t, dy = (value.detach().to(kernels, torch.float32) for value in (x_BCHW, t_BO11, dy_BOHW))
    ours, saved = operation.forward(x, t)
    close(ours, expected.detach(), TOLERANCE[kernels])
    dx_BCHW, _ = operation.backward(saved, dy, (True, False))
    assert dx_BCHW is not None
    close(dx_BCHW, expected_dx, TOLERANCE[kernels])


@pytest.mark.parametrize("recompute", LEVELS)
def test_a_transformer(kernels: str, recompute: Recompute) -> None:
    module = transformer()
    x_BCHW = torch.randn(2, CHANNELS, 3, 2, dtype=torch.float64, requires_grad=True)
    ctx_BSD = torch.randn(2, 7, CONTEXT, dtype=torch.float64)
    expected = module(x_BCHW, ctx_BSD)
    dy_BCHW = torch.randn_like(expected)
    (expected_dx,) = torch.autograd.grad(expected, x_BCHW, dy_BCHW)
    operation, caption = fused(copy.deepcopy(module).to(kernels, torch.float32), recompute)
    x, ctx, dy = (value.detach().to(kernels, torch.float32) for value in (x_BCHW, ctx_BSD, dy_BCHW))
    with torch.no_grad():
        kv_OR, _ = caption.forward(ctx)
        ours, saved = operation.forward(x, kv_OR)
        close(ours, expected.detach(), TOLERANCE[kernels])
        dx_BCHW, _ = operation.backward(saved, dy, (True, False))
    assert dx_BCHW is not None
    close(dx_BCHW, expected_dx, TOLERANCE[kernels])


USED = {"adamw", "geglu", "group_norm", "layer_norm", "loss"}


@pytest.mark.parametrize("unused", [set(), {"group_norm"}, USED])
def test_a_training_step_launches_the_kernels_that_are_used(unused: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the others alone. On "meta", where nothing is computed."""
    launched = set()

    def launch(kernel: gate.Kernel, grid: tuple[int, ...]) -> Callable[..., None]:
        launched.add(kernel.function.__module__.rpartition(".")[2])
        return lambda *_, **__: None

    monkeypatch.setattr(gate.Kernel, "__getitem__", launch)
    monkeypatch.setattr(gate, "_capability", lambda device: gate.TURING)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: x.is_meta))
    monkeypatch.setattr(gate, "UNUSED", unused | {"lora_linear"})
    unet, text = base(0)
    unet.to("meta", torch.float16), text.to("meta", torch.float16)
    member = Member(LoRANetwork(unet, text, NetworkSettings(2, 1.0), merged=False))
    trainer = Trainer(unet, text, [member], max_token_length=75, switches=Switches(tape=False, beside=False))
    trainer.step([(Step(0, 1e-3, 1e-3, [[sample(0, 0, 5)]]), pictures())])
    assert launched == USED - unused
