"""GEGLU against its definition in float64: the plain form, and Triton's kernels."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels.geglu import geglu, geglu_backward, geglu_definition, geglu_forward
from torch import Tensor

from tests.kernels import TOLERANCES, close

# Widths of SD1.x with few rows, and odd ones.
SHAPES = [(1, 6, 2560), (7, 5120), (2, 10240), (2, 3, 2 * 257), (3, 2)]


def references(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(projection, gradient of the result), which `dtype` holds exactly, and the definition's (result, gradient)."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).to(dtype).double().requires_grad_()
    dy = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator, dtype=torch.float64).to(dtype).double()
    y = geglu_definition(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return x.detach(), dy, y.detach(), dx


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shape", [(1, 256, 256), (2, 64, 512), (3, 2)])
def test_geglu_equals_its_definition(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x, dy, y, dx = references(shape, dtype)
    own_x = x.to(dtype).requires_grad_()
    own = geglu(own_x)
    (gradient,) = torch.autograd.grad(own, own_x, dy.to(dtype))
    close(own, y, tolerance)
    close(gradient, dx, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_definition(
    kernels: str, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x, dy, y, dx = references(shape, dtype)
    own_x = x.to(kernels, dtype).requires_grad_()
    own = geglu(own_x)
    (gradient,) = torch.autograd.grad(own, own_x, dy.to(kernels, dtype))
    assert own.dtype == gradient.dtype == dtype
    close(own, y, tolerance)
    close(gradient, dx, tolerance)


def test_a_gradient_may_take_the_projection_s_place(kernels: str) -> None:
    x, dy, y, dx = references((5, 514), torch.float32)
    u_RO = x.to(kernels, torch.float32)
    close(geglu_forward(u_RO), y, 1e-6)
    assert geglu_backward(dy.to(kernels, torch.float32), u_RO, u_RO) is u_RO
    close(u_RO, dx, 1e-6)


def test_geglu_gradient_is_the_derivative() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(geglu, (x,))


def test_geglu_keeps_one_tensor() -> None:
    kept: list[torch.Tensor] = []
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        geglu(x)
    assert [t.shape for t in kept] == [x.shape]
