"""Each fused operation against its definition, forward and backward, in float64 and float32."""

from __future__ import annotations

import pytest
import torch
from lorac.kernels.geglu import geglu, geglu_definition


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shape", [(1, 256, 256), (2, 64, 512), (3, 2)])
def test_geglu_equals_its_definition(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    grad = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator, dtype=torch.float64)
    reference_x = x.clone().requires_grad_()
    reference = geglu_definition(reference_x)
    reference.backward(grad)
    own_x = x.to(dtype).requires_grad_()
    own = geglu(own_x)
    own.backward(grad.to(dtype))
    assert own_x.grad is not None
    assert reference_x.grad is not None
    assert (own.double() - reference).abs().max() <= tolerance * reference.abs().max()
    assert (own_x.grad.double() - reference_x.grad).abs().max() <= tolerance * reference_x.grad.abs().max()


def test_geglu_gradient_is_the_derivative() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(geglu, (x,))


def test_geglu_keeps_one_tensor() -> None:
    kept: list[torch.Tensor] = []
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        geglu(x)
    assert [t.shape for t in kept] == [x.shape]
