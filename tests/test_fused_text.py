"""The fused text layer against the plain one under autograd: both forms, several LoRAs, levels of recomputation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_names import PARTS
from lorac.train.fused import text
from lorac.train.fused.attention import Blockwise
from lorac.train.fused.backends import Choice
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.joint import joint_stacks
from lorac.train.fused.linear import Adapted
from lorac.train.fused.text import FusedTextLayer
from lorac.train.switches import Recompute
from tests.adapted import close
from tests.small import TEXT, randomise

PATH = "text_model.encoder.layers.0"
SIZES = [(2, 2.0), (5, 1.0)]


def encoder() -> TextEncoder:
    """No token is looked up."""
    text_encoder = TextEncoder(replace(TEXT, vocabulary=1))
    randomise(text_encoder, 1)
    return text_encoder.eval()


def network(text_encoder: TextEncoder, number: int, merged: bool) -> LoRANetwork:
    lora = LoRANetwork(nn.Module(), text_encoder, NetworkSettings(*SIZES[number]), PARTS[:1], merged=merged)
    generator = torch.Generator().manual_seed(number)
    for stack in lora.stacks:
        stack.up_MOR.data.normal_(std=0.1, generator=generator)
    lora.refresh()
    return lora


def plain(x_BLC: Tensor, dy_BLC: Tensor, number: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(y, dx, gradients of factors) of one LoRA's samples, under autograd."""
    text_encoder = encoder()
    lora = network(text_encoder, number, merged=False)
    layer: Any = text_encoder.get_submodule(PATH)
    x_BLC = x_BLC.clone().requires_grad_()
    y_BLC = layer(x_BLC)
    torch.autograd.backward(y_BLC, dy_BLC)
    assert x_BLC.grad is not None
    return y_BLC.detach(), x_BLC.grad, gradients_of(lora)


def gradients_of(lora: LoRANetwork) -> dict[str, Tensor]:
    factors = lora.parameters("text_encoder")
    named = lora.named({p: torch.zeros_like(p) if p.grad is None else p.grad for p in factors})
    return {name: gradient for name, gradient in named.items() if "layers_0_" in name}


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "added"])
@pytest.mark.parametrize(("networks", "each"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.ELEMENTWISE, Recompute.TRANSFORMER])
@pytest.mark.parametrize("below", [True, False])
def test_text_layer(merged: bool, networks: int, each: int, recompute: Recompute, below: bool) -> None:
    _compare(merged, networks, each, recompute, below)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "added"])
@pytest.mark.parametrize(("networks", "each"), [(1, 2), (2, 2)])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.TRANSFORMER])
def test_text_layer_as_on_a_card(
    merged: bool, networks: int, each: int, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a kernel of torch's that does not keep the softmax."""
    monkeypatch.setattr(
        text, "attention_for", lambda heads, *_, **given: Blockwise(heads, given["choice"], given["causal"])
    )
    _compare(merged, networks, each, recompute, below=True)


def _compare(merged: bool, networks: int, each: int, recompute: Recompute, below: bool) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(2, networks * each, 77, 64)
    text_encoder = encoder()
    loras = [network(text_encoder, number, merged) for number in range(networks)]
    stacks = [StackGradients(stack, lambda _: None) for stack in joint_stacks(loras)]
    places = {target.path: (stack, i) for stack in stacks for i, target in enumerate(stack.stack.targets)}

    def adapted(name: str, count: int) -> Adapted:
        gradients, first = places[f"{PATH}.{name}"]
        return Adapted(gradients, first, count, recompute)

    layer = FusedTextLayer(text_encoder.get_submodule(PATH), 4, adapted, recompute, Choice("auto"))
    with torch.no_grad():
        y, saved = layer.forward(x)
        (dx,) = layer.backward(saved, dy, (below,))
    for stack in stacks:
        stack.finish()
    assert (dx is not None) is below
    for number, lora in enumerate(loras):
        mine = slice(number * each, (number + 1) * each)
        expected_y, expected_dx, expected = plain(x[mine], dy[mine], number)
        assert close(y[mine], expected_y)
        assert dx is None or close(dx[mine], expected_dx)
        ours = gradients_of(lora)
        assert ours.keys() == expected.keys() and len(ours) == 12
        largest = max(gradient.norm() for gradient in expected.values())
        assert all((ours[name] - g).norm() <= 2e-5 * g.norm() + 1e-7 * largest for name, g in expected.items())


def kept(saved: Any) -> int:
    return saved.nbytes if isinstance(saved, Tensor) else sum(kept(part) for part in saved or ())


def test_each_level_keeps_less() -> None:
    text_encoder = encoder()
    lora = network(text_encoder, 0, merged=True)
    stacks = [StackGradients(stack, lambda _: None) for stack in joint_stacks([lora])]
    places = {target.path: (stack, i) for stack in stacks for i, target in enumerate(stack.stack.targets)}
    sizes = []
    for recompute in (Recompute.NOTHING, Recompute.ELEMENTWISE, Recompute.TRANSFORMER):
        layer = FusedTextLayer(
            text_encoder.get_submodule(PATH),
            4,
            lambda n, c: Adapted(*places[f"{PATH}.{n}"], c),
            recompute,
            Choice("auto"),
        )
        sizes.append(kept(layer.forward(torch.randn(1, 77, 64))[1]))
    rows = 77 * 4
    assert sizes[0] - sizes[1] == rows * (64 + 64 + 128)  # two norms and the activation
    assert sizes[2] == rows * 64
