"""Every kernel over SD1.5's shapes at 512 px, for which Triton's interpreter is too slow, against its definition."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernel_cases import CASES, Case
from tests.kernels import TOLERANCES, close

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases()], ids=lambda case: case.name)
def test_a_kernel_equals_its_definition(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    x = case.input("cuda", dtype)
    exact = x.detach().double().requires_grad_()
    wanted = case.definition(exact)
    dy = torch.randn_like(wanted).to(dtype)
    found = case.own(x)
    close(found, wanted.detach().cpu(), tolerance)
    close(torch.autograd.grad(found, x, dy)[0], torch.autograd.grad(wanted, exact, dy.double())[0].cpu(), tolerance)
