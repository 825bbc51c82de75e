"""The LoRA linear layer against its definition in float64, and the added form with it and without."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels import gate, lora_linear
from lorac.kernels.lora_linear import lora_linear_backward, lora_linear_definition, lora_linear_forward
from torch import Tensor

from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.joint import JointStack
from lorac.train.fused.linear import Adapted
from lorac.train.switches import Recompute
from tests.adapted import Definition, layers_of, stack_of
from tests.kernels import TOLERANCES, close

# Networks, rows, modules, outputs, inputs, rank: SD1.x's widths, and odd ones.
SHAPES = [
    (1, 7, 3, 320, 320, 4),
    (2, 5, 1, 640, 640, 32),
    (1, 3, 1, 1280, 1280, 256),
    (1, 9, 1, 320, 1280, 128),
    (3, 18, 2, 33, 17, 1),
]


def numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Float64 that `dtype` holds exactly, of a size that keeps sums near 1."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.mul_(shape[-1] ** -0.5).to(dtype).double()


@pytest.fixture
def dotting(kernels: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `kernels`, with tensor cores; in tiles so large that little is left to interpret."""
    if kernels == "cpu":
        monkeypatch.setattr(gate, "dots", gate.opens)
        monkeypatch.setattr(lora_linear, "_tile", lambda *_: (16, 256, 256, 4))
    return kernels


def layer(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """The definition's arguments, and a gradient of its result."""
    networks, rows, modules, outputs, inputs, rank = shape
    sizes = [(networks, rows, inputs), (modules * outputs, inputs), (networks, modules * rank, inputs)]
    sizes += [(modules, networks, outputs, rank), (networks,), (modules * outputs,)]
    sizes += [(networks, rows, modules * outputs)]
    arguments = [numbers(*size, dtype=dtype, seed=seed) for seed, size in enumerate(sizes)]
    return arguments, numbers(networks, rows, modules * outputs, dtype=dtype, seed=9)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_definition(
    dotting: str, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """And their gradients: factors are held in float32, and m is rounded to `dtype` before its product."""
    wanted, dy = layer(shape, dtype)
    parts = [wanted[i].requires_grad_() for i in (0, 2, 3, 6)]
    y = lora_linear_definition(*wanted)
    gradients = torch.autograd.grad(y, parts, dy)
    types = [dtype, dtype, torch.float32, torch.float32, torch.float32, dtype, dtype]
    own = [x.detach().to(dotting, kind) for x, kind in zip(wanted, types, strict=True)]
    own_parts = [own[i].requires_grad_() for i in (0, 2, 3, 6)]
    own_y = lora_linear.lora_linear(*own)
    assert own_y.dtype == dtype
    close(own_y, y.detach(), 2 * tolerance)
    for found, gradient in zip(torch.autograd.grad(own_y, own_parts, dy.to(dotting, dtype)), gradients, strict=True):
        close(found, gradient, 2 * tolerance)


@pytest.mark.parametrize("tile", lora_linear.TILES)
def test_any_tile_and_memory_order(dotting: str, tile: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns as input and residual, `times`, and a residual of the gradient."""
    monkeypatch.setattr(lora_linear, "_tile", lambda *_: tile)
    (x, weight, down, up, _, bias, plus), dy = layer((2, 40, 3, 36, 70, 4), torch.float32)
    m, dm = numbers(2, 40, 12, dtype=torch.float32, seed=20), numbers(2, 40, 12, dtype=torch.float32, seed=21)
    changes = [m_NLQ @ up_NOQ.mT for m_NLQ, up_NOQ in zip(m.chunk(3, 2), up, strict=True)]
    y = 0.5 * (x @ weight.t() + bias + torch.cat(changes, 2)) + plus
    dx = dy @ weight + dm @ down + x
    x, weight, down, up, bias, plus, dy, m, dm = (
        tensor.to(dotting, torch.float32) for tensor in (x, weight, down, up, bias, plus, dy, m, dm)
    )
    turned_x, turned_plus = x.mT.contiguous().mT, plus.flatten(0, 1).t().contiguous().t()
    close(lora_linear_forward(turned_x, weight, m, up, bias, turned_plus, 0.5), y.flatten(0, 1), 2e-6)
    turned_dy, turned_x = dy.flatten(0, 1).t().contiguous().t(), x.flatten(0, 1).t().contiguous().t()
    close(lora_linear_backward(turned_dy, weight, dm, down, turned_x), dx.flatten(0, 1), 2e-6)


def test_every_tile_is_taken() -> None:
    """By some of SD1.x's layers at 512 px: 4096 rows of q, k, v and of a feed-forward; 256, 64 and 77 rows."""
    shapes = [(1, 4096, 1, 2560), (1, 4096, 1, 320), (1, 1024, 1, 640), (1, 256, 1, 1280), (1, 64, 1, 1280)]
    assert [lora_linear._tile(*shape) for shape in shapes] == list(lora_linear.TILES)


@pytest.mark.parametrize("ranks", [(4,), (2, 5)])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.ELEMENTWISE])
def test_layers_can_use_it(
    dotting: str, ranks: tuple[int, ...], recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules 1 to 3 of five, of one network and of two; the gradients of the factors come as they always do."""
    monkeypatch.setattr(lora_linear, "opens", lambda x: True)
    torch.manual_seed(1)
    stacks = [stack_of(layers_of(5, 12, 20, bias=True), False, rank, 3.0) for rank in ranks]
    definition, gradients = Definition(stacks, 1, 3), StackGradients(JointStack(stacks), lambda _: None)
    x_NLI = torch.randn(len(ranks), 7, 12).double().requires_grad_()
    dy_RY, plus_RY, plus_RI = (torch.randn(7 * len(ranks), width) for width in (60, 60, 12))
    y_RY = definition.forward(x_NLI).flatten(0, 1)
    torch.autograd.backward(y_RY, dy_RY.double())
    assert x_NLI.grad is not None
    layer, x_RI = Adapted(gradients, 1, 3, recompute), x_NLI.detach().float().flatten(0, 1)
    close(layer.rows(x_RI, plus_RY, 0.7), (0.7 * y_RY + plus_RY).detach(), 2e-6)
    close(layer.backward(x_RI, dy_RY, plus_RI), x_NLI.grad.flatten(0, 1) + plus_RI, 2e-6)
    gradients.finish()
    for wanted, found in definition.gradients(stacks):
        close(found, wanted, 2e-6)


def test_layers_use_it_when_a_card_has_measured_it(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.zeros(1, dtype=torch.float16)
    monkeypatch.setattr(gate, "dots", lambda x: True)
    assert lora_linear.opens(half) == ("lora_linear" not in gate.UNUSED)
    monkeypatch.setattr(gate, "UNUSED", set())
    assert lora_linear.opens(half)
    assert not lora_linear.opens(half.float())
