"""LayerNorm against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels.layer_norm import layer_norm, layer_norm_backward, layer_norm_definition, layer_norm_forward
from torch import Tensor

from tests.kernels import TOLERANCES, close

# Channels of SD1.x and of its text encoder with few rows, and odd ones.
SHAPES = [(9, 320), (5, 640), (3, 1280), (7, 768), (13, 33)]


def references(shape: tuple[int, int], dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """(x, dy, weight, bias), which `dtype` holds exactly, and the definition's result and gradient, in float64."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in (shape, shape, shape[1:], shape[1:])]
    drawn[0] = 2 * drawn[0] + torch.linspace(-3, 3, shape[0])[:, None]
    x, dy, weight, bias = given = [value.to(dtype).double() for value in drawn]
    y = layer_norm_definition(x.requires_grad_(), weight, bias, 1e-5)
    (dx,) = torch.autograd.grad(y, x, dy)
    return [value.detach() for value in given], y.detach(), dx


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_definition(
    kernels: str, shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    given, y, dx = references(shape, dtype)
    x, dy, weight, bias = (value.to(kernels, dtype) for value in given)
    own = layer_norm(x.requires_grad_(), weight, bias, 1e-5)
    (gradient,) = torch.autograd.grad(own, x, dy)
    assert own.dtype == gradient.dtype == dtype
    close(own, y, tolerance)
    close(gradient, dx, tolerance)


def test_something_may_be_added_to_the_gradient(kernels: str) -> None:
    given, _, dx = references((5, 320), torch.float32)
    x, dy, weight, bias = (value.to(kernels, torch.float32) for value in given)
    _, mean_R, rstd_R = layer_norm_forward(x, weight, bias, 1e-5)
    close(layer_norm_backward(dy, x, mean_R, rstd_R, weight, plus_RC=dy), dx + given[1], 2e-6)


def test_elsewhere_it_is_the_definition() -> None:
    given, y, _ = references((5, 320), torch.float64)
    assert torch.equal(layer_norm(given[0], *given[2:], 1e-5), y)
