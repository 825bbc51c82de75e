"""GroupNorm with SiLU against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels.group_norm import group_norm, group_norm_backward, group_norm_definition, group_norm_forward
from torch import Tensor

from tests.kernels import TOLERANCES, close

# Six groups as wide as SD1.x's 32, with few pixels, odd sizes and more than one chunk; below, a small base and the
# lowest level at 512 px. A program takes four, two or one of the groups: the last may have fewer. The interpreter takes
# 20 ms for each, of which 64² pixels and 32 groups would have 500 four times.
GROUPS = 6
SHAPES = [
    (1, 60, 3, 5),
    (1, 120, 4, 4),
    (1, 180, 3, 5),
    (1, 240, 1, 1),
    (1, 360, 2, 3),
    (1, 480, 3, 3),
    (1, 60, 13, 7),
]
CASES = [
    *((shape, GROUPS, torch.float32, True) for shape in SHAPES),
    ((2, 32, 9, 31), 32, torch.float32, True),
    ((1, 1280, 8, 8), 32, torch.float32, True),
    (SHAPES[0], GROUPS, torch.float32, False),
    *((SHAPES[0], GROUPS, dtype, True) for dtype in (torch.float16, torch.bfloat16)),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.5) -> list[Tensor]:
    """x, dy, weight, bias, which `dtype` holds exactly, in float64. Groups differ in mean and width."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in (shape, shape, shape[1:2], shape[1:2])]
    drawn[0] = drawn[0] * torch.linspace(0.3, 3.0, shape[1])[:, None, None] + mean
    drawn[2] = 1 + 0.3 * drawn[2]
    return [value.to(dtype).double() for value in drawn]


def references(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, silu: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    given = inputs(shape, dtype)
    x, dy, weight, bias = given
    x.requires_grad_()
    y = group_norm_definition(x, weight, bias, groups, 1e-5, silu)
    return given, y.detach(), torch.autograd.grad(y, x, dy)[0]


@pytest.mark.parametrize(("shape", "groups", "dtype", "silu"), CASES)
def test_kernels_equal_the_definition(
    kernels: str, shape: tuple[int, ...], groups: int, dtype: torch.dtype, silu: bool
) -> None:
    tolerance = dict(TOLERANCES)[dtype]
    given, y, dx = references(shape, groups, dtype, silu)
    own_x, dy, weight, bias = (value.detach().to(kernels, dtype) for value in given)
    own_x.requires_grad_()
    own = group_norm(own_x, weight, bias, groups, 1e-5, silu)
    (gradient,) = torch.autograd.grad(own, own_x, dy)
    assert own.dtype == gradient.dtype == dtype
    assert own.is_contiguous(memory_format=torch.channels_last)
    close(own, y, tolerance)
    close(gradient, dx, tolerance)


def test_something_may_be_added_to_the_gradient(kernels: str) -> None:
    given, _, dx = references(SHAPES[0], GROUPS, torch.float32, True)
    x, dy, weight, bias = (
        value.detach().to(kernels, torch.float32).contiguous(memory_format=torch.channels_last)
        if value.dim() == 4
        else value.to(kernels, torch.float32)
        for value in given
    )
    _, mean_BG, rstd_BG = group_norm_forward(x, weight, bias, GROUPS, 1e-5, True)
    found = group_norm_backward(dy, x, mean_BG, rstd_BG, weight, bias, True, plus_BCHW=x)
    close(found, dx + given[0].detach(), 2e-6)


def test_a_large_mean_does_not_swallow_the_variance(kernels: str) -> None:
    x, _, weight, bias = inputs(SHAPES[-1], torch.float32, mean=1000.0)
    wanted = group_norm_definition(x, weight, bias, GROUPS, 1e-5, False)
    found = group_norm(*(value.to(kernels, torch.float32) for value in (x, weight, bias)), GROUPS, 1e-5, False)
    close(found, wanted, 2e-4)  # the inputs' own last place is 6e-5, the means' as well


def test_the_same_bits_every_time(kernels: str) -> None:
    x, _, weight, bias = (value.to(kernels, torch.float32) for value in inputs(SHAPES[-1], torch.float32))
    results = [group_norm(x, weight, bias, GROUPS, 1e-5, True) for _ in range(2)]
    assert torch.equal(*results)
