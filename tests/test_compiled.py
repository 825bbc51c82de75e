"""torch.compile of networks that are not fused: the same numbers, one program for a shape, and a way on without."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.unet import UNet, UNetConfig
from lorac.train import step
from lorac.train.compiled import Compiled
from lorac.train.member import Member
from lorac.train.step import Trainer
from lorac.train.switches import Switches
from tests.small import TEXT, base
from tests.test_fused_transformer import CONTEXT

UNET = UNetConfig(width=16, context=CONTEXT, heads=2, groups=4)


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dynamo sees is run as it is: what inductor makes of it is torch's own affair."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()


def dora() -> tuple[UNet, LoRANetwork]:
    unet, text = base(0, UNET, TEXT)
    return unet, LoRANetwork(unet, text, NetworkSettings(2, 1.0, dora=True), ("unet",), 1, merged=False)


def gradients(network: LoRANetwork) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in network.parameters("unet") if p.grad is not None])
    for parameter in network.parameters("unet"):
        parameter.grad = None
    return found


def test_a_lora_that_is_attached_anew_is_not_compiled_anew() -> None:
    """Of a transformer with DoRA, forward and backward; only another size of pictures is compiled again."""
    unet, network = dora()
    module = unet.mid_block.attentions[0]
    compiled = Compiled(module, pytest.fail)
    for number, side in enumerate((3, 3, 3, 2)):
        x_BCHW, ctx_BSD = torch.randn(1, 64, side, 3), torch.randn(1, 7, CONTEXT)
        found = []
        for call in (module, compiled):
            network.refresh()
            call(x_BCHW, ctx_BSD).square().sum().backward()
            found.append(gradients(network))
        assert found[0].any()
        assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()
        assert counters["stats"]["unique_graphs"] == (2 if number == 3 else 1)
        for factor in network.parameters("unet"):
            factor.data.add_(0.01 * torch.randn_like(factor))
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("settings", "wanted"), [({"dora": True}, True), ({}, False), ({"dora": True, "dropout": 0.1}, False)]
)
def test_what_is_fused_or_drops_out_is_not_compiled(
    settings: dict[str, Any], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(step, "Compiled", lambda unet, warn: made.append(unet))
    unet, text = base(0, UNET, TEXT)
    network = LoRANetwork(unet, text, NetworkSettings(2, 1.0, **settings), ("unet",), 1, merged=False)
    Trainer(unet, text, [Member(network, trained=("unet",))], switches=Switches(compile=True))
    assert made == [unet] * wanted


def test_what_cannot_be_compiled_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend=broken))  # type: ignore[attr-defined]
    warnings: list[str] = []
    compiled = Compiled(torch.nn.Linear(2, 2), warnings.append)
    assert compiled(torch.ones(1, 2)).shape == compiled(torch.ones(1, 2)).shape == (1, 2)
    (warning,) = warnings
    assert "not compiled" in warning and "no compiler here" in warning and "\n" not in warning
