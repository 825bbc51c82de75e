"""Fused training operations against autograd: whole networks against the added form, single operations in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorac.sd.blocks import Resnet, Upsample
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_stack import Stack
from lorac.train.adamw import FusedAdamW
from lorac.train.fused import choice
from lorac.train.fused.attention import attend, attend_backward, join_heads, split_heads
from lorac.train.fused.convolution import FusedConvolution, FusedUpsample
from lorac.train.fused.resnet import FusedResnet
from lorac.train.fused.scratch import Scratch
from lorac.train.objective import Pictures
from lorac.train.optimiser import AdamW
from lorac.train.slices import Sample, Step
from lorac.train.switches import Switches
from tests.alone import Alone
from tests.small import base, randomise


def gradients(
    merged: bool,
    rank: int,
    size: tuple[int, int],
    batch: int,
    tokens: int,
    parts: tuple[str, ...],
    settings: NetworkSettings | None = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(loss, gradients by kohya's names, their norm) of one step."""
    unet, text_encoder = base()
    lora = LoRANetwork(unet, text_encoder, settings or NetworkSettings(rank, 2.0 * rank), merged=merged)
    assert lora.merged is merged
    generator = torch.Generator().manual_seed(2)
    lora.load_state(
        {
            name: tensor if tensor.dim() == 0 else torch.randn(tensor.shape, generator=generator) * 0.05
            for name, tensor in sorted(lora.state().items())
        }
    )
    trainer = Alone(unet, text_encoder, lora, trained=parts, clip_skip=2, max_token_length=tokens)
    samples = [Sample(i, 100 + 300 * i, 5 + i, 1.0, [1000 + i] * 20) for i in range(batch)]
    latents = [torch.randn(4, *size, generator=generator) for _ in range(batch)]
    norms = []
    trainer.optimiser.apply = lambda norm, rates: norms.append(norm)  # type: ignore[method-assign]
    loss = trainer.step(Step(0, 1.0, 1.0, [samples]), Pictures(latents))
    factors = [factor for part in ("text_encoder", "unet") for factor in lora.parameters(part)]
    grads = {factor: torch.zeros_like(factor) if factor.grad is None else factor.grad for factor in factors}
    return loss, lora.named(grads), norms[0]


@pytest.mark.parametrize(
    ("rank", "size", "batch", "tokens", "parts"),
    [
        (2, (16, 16), 1, 75, ("unet", "text_encoder")),
        (128, (16, 16), 1, 150, ("unet", "text_encoder")),
        (8, (8, 16), 3, 225, ("unet", "text_encoder")),
        (8, (12, 20), 2, 75, ("unet", "text_encoder")),  # levels of 3×5 and 2×3 pixels
        (8, (16, 16), 1, 75, ("unet",)),
        (8, (16, 16), 2, 75, ("text_encoder",)),
    ],
)
def test_every_gradient_equals_that_of_the_added_form(
    rank: int, size: tuple[int, int], batch: int, tokens: int, parts: tuple[str, ...]
) -> None:
    loss, ours, norm = gradients(True, rank, size, batch, tokens, parts)
    expected_loss, expected, expected_norm = gradients(False, rank, size, batch, tokens, parts)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(norm, expected_norm, rtol=1e-4, atol=0)
    assert len(ours) == 528
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8 * norm, name
        assert gradient.any() == ours[name].any(), name


def test_gradients_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorac.train.fused.gradients.PIECE", 1)
    test_every_gradient_equals_that_of_the_added_form(8, (16, 16), 1, 75, ("unet", "text_encoder"))


@pytest.mark.parametrize(
    "settings",
    [
        NetworkSettings(3, 2.0, block_dims=tuple(1 + n % 3 for n in range(25)), block_alphas=(0.5, *range(1, 25))),
        NetworkSettings(3, 2.0, block_dims=(4, 4, 0, 4, 2) + (4, 0) * 10, mid_lr_weight=0.0),
        NetworkSettings(4, 2.0, rslora=True, loraplus_lr_ratio=4.0, down_lr_weight=(0.0,) * 6 + (0.5,) * 6),
    ],
)
def test_gradients_of_networks_of_uneven_blocks(settings: NetworkSettings) -> None:
    more = (4, (16, 16), 2, 75, ("unet", "text_encoder"), settings)
    loss, ours, norm = gradients(True, *more)
    expected_loss, expected, expected_norm = gradients(False, *more)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(norm, expected_norm, rtol=1e-4, atol=0)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any() == ours[name].any() == ("layers_11" not in name), name  # clip skip 2
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8 * norm, name


@pytest.mark.parametrize("few_weights", [0, 2**30])  # tiles of 2×2, of 4×4
def test_gradients_through_minimal_filters(few_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a base of SD1.x's width: no convolution is small."""
    for name, value in (("FEW_PRODUCTS", 0), ("FEW_CHANNELS", 16), ("PATCH_ELEMENTS", 0), ("FEW_WEIGHTS", few_weights)):
        monkeypatch.setattr(choice, name, value)
    more = (8, (12, 20), 2, 75, ("unet",))
    loss, ours, norm = gradients(True, *more)
    expected_loss, expected, _ = gradients(False, *more)
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8 * norm, name


def check(module: Callable[..., Tensor], operation: Any, *inputs: Tensor) -> None:
    """Output and gradients of an operation against autograd's of the module, for inputs in both memory orders."""
    for order in (torch.contiguous_format, torch.channels_last):
        leaves = [x.contiguous(memory_format=order).requires_grad_() for x in inputs]
        expected = module(*leaves)
        gradient = torch.randn_like(expected)
        expected_gradients = torch.autograd.grad(expected, leaves, gradient, allow_unused=True)
        with torch.no_grad():
            output, saved = operation.forward(*leaves)
            ours = operation.backward(saved, gradient, (True,) * len(leaves))
        torch.testing.assert_close(output, expected)
        for mine, theirs in zip(ours, expected_gradients, strict=True):
            if mine is not None:
                torch.testing.assert_close(mine, theirs)


def frozen(module: nn.Module) -> Any:
    randomise(module.double(), 1)
    return module.requires_grad_(False)


@pytest.mark.parametrize("outputs", [8, 16])
@pytest.mark.parametrize("size", [(4, 6), (1, 3)])
def test_resnet(outputs: int, size: tuple[int, int]) -> None:
    module = frozen(Resnet(8, outputs, groups=4, eps=1e-5, time_channels=12))
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    check(module, FusedResnet(module, Scratch(), Switches()), x, torch.randn(2, outputs, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_convolution(stride: int, size: tuple[int, int]) -> None:
    module = frozen(nn.Conv2d(3, 5, 3, stride=stride, padding=1))
    check(module, FusedConvolution(module, Scratch(), Switches()), torch.randn(2, 3, *size, dtype=torch.float64))


def test_upsample() -> None:
    module = frozen(Upsample(3))
    check(
        lambda x: module(x, (6, 4)),
        FusedUpsample(module.conv, Scratch(), Switches()),
        torch.randn(2, 3, 3, 2, dtype=torch.float64),
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_attention(batch: int, causal: bool) -> None:
    count, tokens = 2, 5
    states = 5 if causal else 7
    q, k, v = (
        torch.randn(batch * count, 4, n, dtype=torch.float64, requires_grad=True) for n in (tokens, states, states)
    )
    mask = torch.full((tokens, states), -torch.inf, dtype=torch.float64).triu_(1) if causal else None
    expected = torch.nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT, is_causal=causal).mT
    gradient = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, (q, k, v), gradient)
    with torch.no_grad():
        scaled = q.clone()
        output, p = attend(scaled, k, v, mask)
        ours = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        attend_backward(gradient, scaled, k, v, p, ours)
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(ours, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("batch", [1, 3])
def test_heads_are_split_and_joined_by_their_definition(batch: int) -> None:
    x_OR = torch.randn(24, batch * 5)
    parts = split_heads(x_OR, 3, 2, batch)
    assert [part.shape for part in parts] == [(batch * 2, 4, 5)] * 3
    for picture in range(batch):
        for head in range(2):
            ours = parts[1][picture * 2 + head]
            assert torch.equal(ours, x_OR[8 + 4 * head : 12 + 4 * head, 5 * picture : 5 * picture + 5])
    assert torch.equal(join_heads(torch.stack(parts), batch), x_OR)


def test_the_helper_thread_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorac.train import step as module
    from lorac.train.helper import Inline

    def three_steps() -> dict[str, Tensor]:
        unet, text_encoder = base()
        trainer = Alone(unet, text_encoder, LoRANetwork(unet, text_encoder, NetworkSettings(4, 4.0)))
        for i in range(3):
            trainer.step(Step(i, 1e-3, 1e-3, [[Sample(0, 500, i, 1.0, [5])]]), Pictures([torch.ones(4, 8, 8)]))
        return trainer.state()

    threaded = three_steps()
    monkeypatch.setattr(module, "helper_for", lambda device: Inline())
    inline = three_steps()
    assert threaded.keys() == inline.keys()
    assert all(torch.equal(threaded[name], inline[name]) for name in inline)


def test_an_error_in_the_helper_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, text_encoder = base()
    trainer = Alone(unet, text_encoder, LoRANetwork(unet, text_encoder, NetworkSettings(2, 2.0)))

    def fail(_: AdamW, stack: Stack, adamw: FusedAdamW, rate: float) -> None:
        if stack.part == "unet":
            raise MemoryError("no more")

    monkeypatch.setattr(AdamW, "_apply_to", fail)
    trainer.optimiser.apply(torch.ones(()), {"text_encoder": 1.0, "unet": 1.0})
    with pytest.raises(MemoryError, match="no more"):
        trainer.optimiser.settle()
