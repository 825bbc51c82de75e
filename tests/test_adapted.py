"""Linear layers with their LoRA, merged and added, for one network and several, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.joint import JointStack
from lorac.train.fused.linear import Adapted
from lorac.train.fused.products import of_rows
from lorac.train.switches import Recompute
from tests.adapted import Definition, close, layers_of, stack_of

NETWORKS = {1: [(4, 2.0)], 3: [(2, 2.0), (5, 1.0), (3, 6.0)], 2: [(3, 3.0), (2, 2.0)]}
"""By how many: ranks and alphas."""

MODULES, INPUTS, OUTPUTS = 5, 6, 8


@pytest.fixture(params=[True, False], ids=["merged", "added"])
def merged(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Case:
    """Modules 1 to 1 + count of five, and samples for all networks."""

    def __init__(self, merged: bool, networks: int, count: int, bias: bool, each: int = 1, tokens: int = 7) -> None:
        torch.manual_seed(networks + 10 * count)
        layers = layers_of(MODULES, INPUTS, OUTPUTS, bias)
        self.stacks = [stack_of(layers, merged, *sizes) for sizes in NETWORKS[networks]]
        self.definition = Definition(self.stacks, 1, count)
        self.completed: list[StackGradients] = []
        self.gradients = StackGradients(JointStack(self.stacks), self.completed.append)
        self.networks, self.count, self.samples, self.tokens = networks, count, networks * each, tokens
        self.x_RI = torch.randn(self.samples * tokens, INPUTS)
        self.dy_RY = torch.randn(self.samples * tokens, count * OUTPUTS)

    def expect(self, times: float = 1.0) -> tuple[Tensor, Tensor]:
        """y (R, Y) and dx (R, I); a second call adds to the factors' gradients."""
        x_NLI = self.x_RI.double().view(self.networks, -1, INPUTS).requires_grad_()
        y_NLY = times * self.definition.forward(x_NLI)
        torch.autograd.backward(y_NLY, self.dy_RY.double().view_as(y_NLY))
        assert x_NLI.grad is not None
        return y_NLY.detach().flatten(0, 1), x_NLI.grad.flatten(0, 1)

    def columns(self, y_RY: Tensor) -> Tensor:
        """Rows as columns, by the definition: (K, S, O, T)."""
        return y_RY.view(self.samples, self.tokens, self.count, -1).permute(2, 0, 3, 1)

    def check_gradients(self) -> None:
        norms = self.gradients.finish()
        for expected, ours in self.definition.gradients(self.stacks):
            assert close(ours, expected)
        for stack, norm in zip(self.stacks, norms, strict=True):
            assert stack.down_MRI.grad is not None and stack.up_MOR.grad is not None
            torch.testing.assert_close(norm, torch.stack([stack.down_MRI.grad.norm(), stack.up_MOR.grad.norm()]))
            unused = [m for m in range(MODULES) if not 1 <= m < 1 + self.count]
            assert not stack.down_MRI.grad[unused].any() and not stack.up_MOR.grad[unused].any()


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize(("count", "bias"), [(1, True), (1, False), (3, True), (3, False)])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.ELEMENTWISE])
@pytest.mark.parametrize("tokens", [7, 200])  # through recorded layers, and layer by layer
def test_rows(merged: bool, networks: int, count: int, bias: bool, recompute: Recompute, tokens: int) -> None:
    case = Case(merged, networks, count, bias, tokens=tokens)
    layer = Adapted(case.gradients, 1, count, recompute)
    y_RY, dx_RI = case.expect()
    assert close(layer.rows(case.x_RI), y_RY)
    assert close(layer.backward(case.x_RI, case.dy_RY), dx_RI)
    case.check_gradients()


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_times_and_plus(merged: bool, networks: int, bias: bool) -> None:
    case = Case(merged, networks, 1, bias)
    layer = Adapted(case.gradients, 1)
    (y_RY, dx_RI), plus_RY, plus_RI = case.expect(1.7), torch.randn_like(case.dy_RY), torch.randn_like(case.x_RI)
    kept = plus_RY.clone(), plus_RI.clone()
    assert close(layer.rows(case.x_RI, times=1.7), y_RY)
    assert close(layer.rows(case.x_RI, plus_RY, times=1.7), y_RY + plus_RY)
    assert close(layer.backward(case.x_RI, 1.7 * case.dy_RY, plus_RI), dx_RI + plus_RI)
    assert torch.equal(plus_RY, kept[0]) and torch.equal(plus_RI, kept[1])
    case.check_gradients()


@pytest.mark.parametrize(("networks", "each"), [(1, 1), (1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize(("count", "bias"), [(1, True), (3, False), (3, True)])
@pytest.mark.parametrize("tokens", [7, 600])
def test_columns(merged: bool, networks: int, each: int, count: int, bias: bool, tokens: int) -> None:
    case = Case(merged, networks, count, bias, each, tokens)
    layer = Adapted(case.gradients, 1, count)
    y_RY, dx_RI = case.expect()
    expected_KSOT = case.columns(y_RY)
    y = layer.columns(case.x_RI, case.samples)
    assert y.is_contiguous() and close(y, expected_KSOT.reshape(-1, case.tokens))
    y = layer.columns(case.x_RI)
    assert y.is_contiguous() and close(y, y_RY.T)
    dy_KSOT = case.columns(case.dy_RY).contiguous()
    assert close(layer.backward(case.x_RI, dy_KSOT), dx_RI)
    case.check_gradients()


@pytest.mark.parametrize(("networks", "each"), [(1, 1), (1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("tokens", [7, 600])
def test_inputs_from_columns_and_gradients_to_columns(merged: bool, networks: int, each: int, tokens: int) -> None:
    case = Case(merged, networks, 1, True, each, tokens)
    layer = Adapted(case.gradients, 1)
    y_RY, dx_RI = case.expect()
    x_STI = case.x_RI.view(case.samples, case.tokens, -1).mT.contiguous().mT
    assert close(layer.rows(x_STI), y_RY)
    dx = layer.backward_columns(x_STI, case.dy_RY, case.samples)
    assert dx.is_contiguous() and close(dx.view(case.samples, -1, case.tokens).mT.flatten(0, 1), dx_RI)
    case.check_gradients()
    dx = layer.backward_columns(case.x_RI, case.dy_RY)
    assert dx.is_contiguous() and close(dx, dx_RI.T)


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("tokens", [7, 200])
def test_gradients_add_up(merged: bool, networks: int, tokens: int) -> None:
    case = Case(merged, networks, 1, True, tokens=tokens)
    layer = Adapted(case.gradients, 1)
    for number in range(2):
        case.expect()
        case.gradients.accumulating = number > 0
        layer.record(case.x_RI, case.dy_RY)
        if number == 0:
            case.gradients.finish()
    case.check_gradients()


@pytest.mark.parametrize("networks", [1, 3])
def test_the_last_record_completes_a_stack(merged: bool, networks: int) -> None:
    case = Case(merged, networks, 3, True)
    ends = [Adapted(case.gradients, 4), Adapted(case.gradients, 0)]
    for layer in ends:
        layer.record(case.x_RI, case.dy_RY[:, :OUTPUTS].contiguous())
    assert not case.completed
    Adapted(case.gradients, 1, 3).record(case.x_RI, case.dy_RY)
    assert case.completed == [case.gradients]


def test_joined_layers_hold_their_weights_once() -> None:
    case = Case(False, 1, 3, True)
    before = [layer.weight.clone() for layer in case.stacks[0].layers]
    Adapted(case.gradients, 1, 3)
    after = [layer.weight for layer in case.stacks[0].layers]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len({weight.untyped_storage().data_ptr() for weight in after[1:4]}) == 1


@pytest.mark.parametrize("rows", [3, 128, 200, 300])
@pytest.mark.parametrize("plus", [None, "row", "rows"])
def test_products_of_few_rows_are_those_of_many(rows: int, plus: str | None) -> None:
    """In float64 by hand: every way of multiplying gives `beta` · plus + `alpha` · x weight, contiguous."""
    generator = torch.Generator().manual_seed(1)
    x_RI, weight_OI = torch.randn(rows, 40, generator=generator), torch.randn(10, 40, generator=generator)
    added = {None: None, "row": torch.randn(10), "rows": torch.randn(rows, 10)}[plus]
    y_RO = of_rows(x_RI, weight_OI.t(), added, 0.5, 0.25)
    expected_RO = 0.5 * x_RI.double() @ weight_OI.double().t() + (0 if added is None else 0.25 * added.double())
    assert y_RO.is_contiguous()
    torch.testing.assert_close(y_RO.double(), expected_RO, rtol=1e-5, atol=1e-5)
