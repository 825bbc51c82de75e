"""The fused transformer and its parts against autograd in float64, without LoRAs; those are in test_fused_network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lorac.sd.layers import Linear
from lorac.sd.unet import Transformer, UNetConfig
from lorac.train.fused.attention import WHOLE_LIMIT, Blockwise, Whole, attention_for
from lorac.train.fused.backends import Choice
from lorac.train.fused.frozen import Beside, Frozen, Product
from lorac.train.fused.transformer import CaptionKeysValues, FusedTransformer
from lorac.train.switches import Recompute
from tests.small import randomise

CHANNELS, HEADS, CONTEXT = 8, 2, 6
CONFIG = UNetConfig(width=CHANNELS, context=CONTEXT, heads=HEADS, groups=4)
INNER = "transformer_blocks.0."


def transformer() -> Any:
    module = Transformer(CHANNELS, CONFIG).double()
    randomise(module, 1)
    return module.requires_grad_(False)


def beside(module: Any, *names: str) -> Product:
    layers = [Frozen(module.get_submodule(name)) for name in names]
    return layers[0] if len(layers) == 1 else Beside(layers)


def fused(module: Any, recompute: Recompute) -> tuple[FusedTransformer, CaptionKeysValues]:
    def find(name: str, count: int) -> Product:
        names = [f"{INNER}attn1.{other}" for other in ("to_q", "to_k", "to_v")] if count == 3 else [name]
        return beside(module, *names)

    caption = beside(module, f"{INNER}attn2.to_k", f"{INNER}attn2.to_v")
    return FusedTransformer(module, find, recompute, Choice("auto")), CaptionKeysValues(caption)


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize(("batch", "size"), [(1, (3, 5)), (2, (4, 4)), (3, (1, 1))])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_transformer(recompute: Recompute, batch: int, size: tuple[int, int], order: torch.memory_format) -> None:
    module = transformer()
    x_BCHW = torch.randn(batch, CHANNELS, *size, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    ctx_BSD = torch.randn(batch, 7, CONTEXT, dtype=torch.float64, requires_grad=True)
    expected = module(x_BCHW, ctx_BSD)
    gradient = torch.randn_like(expected)
    dx, dctx = torch.autograd.grad(expected, (x_BCHW, ctx_BSD), gradient)
    operation, caption = fused(module, recompute)
    before = gradient.clone()
    with torch.no_grad():
        for needs in ((True, True), (False, True)):
            kv_OR, saved_kv = caption.forward(ctx_BSD)
            output, saved = operation.forward(x_BCHW, kv_OR)
            ours, dkv_OR = operation.backward(saved, gradient, needs)
            assert dkv_OR is not None
            (own_dctx,) = caption.backward(saved_kv, dkv_OR, (True,))
            torch.testing.assert_close(output, expected)
            torch.testing.assert_close(own_dctx, dctx)
            assert torch.equal(gradient, before), "autograd's gradient may be shared"
            if needs[0]:
                torch.testing.assert_close(ours, dx)
            else:
                assert ours is None


@pytest.mark.parametrize("form", ["whole", "blockwise", "as on a card"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ["qkv", "kvq"])
def test_attention_forms(form: str, batch: int, tokens: int, causal: bool, order: str) -> None:
    """Between three projections in one, of which each row has its own weights."""
    choice = None if form == "blockwise" else Choice("auto")
    attention = Whole(HEADS, causal) if form == "whole" else Blockwise(HEADS, choice, causal)
    generator = torch.Generator().manual_seed(3)
    layer, out = Linear(CHANNELS, 3 * CHANNELS, bias=True).double(), Linear(CHANNELS, CHANNELS, bias=False).double()
    for parameter in (*layer.parameters(), *out.parameters()):
        parameter.data.normal_(generator=generator)
    x_RC = torch.randn(batch * tokens, CHANNELS, dtype=torch.float64, generator=generator, requires_grad=True)
    y_RO = layer(x_RC)
    by_name = dict(zip(order, y_RO.view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4), strict=True))
    q, k, v = (by_name[each] for each in "qkv")
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else torch.zeros((), dtype=torch.bool)
    p = torch.softmax((q @ k.mT * (CHANNELS // HEADS) ** -0.5).masked_fill(hidden, -torch.inf), dim=-1)
    expected = (p @ v).transpose(1, 2).reshape(batch * tokens, CHANNELS)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    (dy_RO,) = torch.autograd.grad(expected, y_RO, gradient @ out.weight)
    with torch.no_grad():
        projected = dict(zip(order, attention.project(Frozen(layer), x_RC, 3, batch), strict=True))
        heads = tuple(projected[each] for each in "qkv")
        a_RC, kept = attention.mix(heads, batch)
        do = attention.gradient(Frozen(out), a_RC, gradient, batch)
        ours = attention.own_backward(do, heads, a_RC, kept, batch, order)
    torch.testing.assert_close(a_RC, expected)
    torch.testing.assert_close(ours, dy_RO)


def test_the_softmax_is_kept_where_it_is_small_and_memory_is_not_short() -> None:
    cpu = torch.device("cpu")
    side = int((WHOLE_LIMIT / 64) ** 0.5)
    assert isinstance(attention_for(8, side, side, 64, cpu, keep=True, choice=Choice("auto")), Whole)
    assert isinstance(attention_for(8, side, side, 64, cpu, keep=False, choice=Choice("auto")), Blockwise)
    assert isinstance(attention_for(8, side, 2 * side, 64, cpu, keep=True, choice=Choice("auto")), Blockwise)
    assert isinstance(attention_for(8, 4, 4, 64, torch.device("meta"), keep=True, choice=Choice("auto")), Blockwise)


@pytest.mark.parametrize("bias", [True, False])
def test_frozen_layers_beside_each_other(bias: bool) -> None:
    layers = [Linear(3, 4, bias).double() for _ in range(2)]
    for layer in layers:
        randomise(layer, 2)
    product, (x, plus, dplus) = Beside([Frozen(layer) for layer in layers]), torch.randn(3, 5, 8).double()
    x, dplus = x[:, :3].clone().requires_grad_(), dplus[:, :3]
    expected: Tensor = torch.cat([layer(x) for layer in layers], dim=1)
    dy = torch.randn_like(expected)
    (dx,) = torch.autograd.grad(expected, x, dy)
    with torch.no_grad():
        torch.testing.assert_close(product.rows(x), expected)
        torch.testing.assert_close(product.rows(x, plus, 2.0), 2 * expected + plus)
        torch.testing.assert_close(product.columns(x), expected.t())
        torch.testing.assert_close(product.backward(x, dy), dx)
        torch.testing.assert_close(product.backward(x, dy, dplus), dx + dplus)
        torch.testing.assert_close(product.backward_columns(x, dy), dx.t())
