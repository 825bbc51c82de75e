"""Frozen 3×3 convolutions against `F.conv2d` and autograd in float64: values, gradients, scratch, and the choice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.train.fused import choice
from lorac.train.fused.choice import Algorithm, Shape, choose, scratch_bytes, weight_bytes
from lorac.train.fused.convolution import FusedConvolution, FusedUpsample, Kernel
from lorac.train.fused.scratch import Scratch
from lorac.train.fused.winograd import components, convolve, gradient
from lorac.train.switches import Switches

SIZES = [(8, 8), (3, 5), (1, 1), (2, 7), (9, 12)]


def convolution(inputs: int, outputs: int, stride: int = 1, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1).requires_grad_(False)


def reference(module: nn.Conv2d, x_BCHW: Tensor, before: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Output, some gradient of it, and the gradient of the convolved picture `before(x_BCHW)`, all in float64."""
    assert module.bias is not None
    picture = before(x_BCHW.double()).requires_grad_()
    y_BOHW = F.conv2d(picture, module.weight.double(), module.bias.double(), module.stride, padding=1)
    dy_BOHW = torch.randn_like(y_BOHW)
    return y_BOHW.detach(), dy_BOHW, torch.autograd.grad(y_BOHW, picture, dy_BOHW)[0]


def difference(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("algorithm", [Algorithm.F2, Algorithm.F4])
@pytest.mark.parametrize("batch", [1, 3])
def test_minimal_filtering_is_a_convolution_and_its_gradient(
    algorithm: Algorithm, batch: int, dtype: torch.dtype
) -> None:
    """One scratch for all sizes, going back and forth: no size finds what another one left."""
    module, scratch = convolution(5, 7), Scratch()
    assert module.bias is not None
    weight_SSCO, bias_O = components(module.weight.to(dtype), algorithm), module.bias.to(dtype)
    limit = 1e-14 if dtype == torch.float64 else 3e-6
    for size in SIZES + SIZES[::-1]:
        for silu, order in ((False, torch.contiguous_format), (True, torch.channels_last)):
            x_BCHW = torch.randn(batch, 5, *size, dtype=dtype).contiguous(memory_format=order)
            expected, dy_BOHW, dx_BCHW = reference(module, x_BCHW, F.silu if silu else torch.clone)
            for shape in ((batch, 7, 1, 1), (batch, 7, *size)):
                plus = torch.randn(shape, dtype=dtype)
                ours = convolve(x_BCHW, weight_SSCO, algorithm, scratch, bias_O, plus, silu)
                assert ours.is_contiguous(memory_format=torch.channels_last)
                assert difference(ours, expected + plus) < limit
            assert difference(gradient(dy_BOHW.to(dtype), weight_SSCO, algorithm, scratch), dx_BCHW) < limit


@pytest.mark.parametrize("algorithm", [Algorithm.F2, Algorithm.F4])
def test_a_smaller_picture_with_the_same_tiles_sees_zeros_around_it(algorithm: Algorithm) -> None:
    module, scratch = convolution(6, 6), Scratch()
    weight_SSCO = components(module.weight, algorithm)
    convolve(torch.full((1, 6, 4, 8), 100.0), weight_SSCO, algorithm, scratch)
    x_BCHW = torch.randn(1, 6, 3, 7)
    expected, _, _ = reference(module, x_BCHW, torch.clone)
    assert difference(convolve(x_BCHW, weight_SSCO, algorithm, scratch, module.bias), expected) < 3e-6


@pytest.mark.parametrize(("algorithm", "limit"), [(Algorithm.F2, 8e-7), (Algorithm.F4, 3e-6)])
def test_rounding_of_a_wide_layer(algorithm: Algorithm, limit: float) -> None:
    """Of the order of a direct convolution's, 1e-6."""
    module, scratch = convolution(320, 64), Scratch()
    x_BCHW = torch.randn(1, 320, 16, 16)
    expected, dy_BOHW, dx_BCHW = reference(module, x_BCHW, torch.clone)
    weight_SSCO = components(module.weight, algorithm)
    assert difference(convolve(x_BCHW, weight_SSCO, algorithm, scratch, module.bias), expected) < limit
    assert difference(gradient(dy_BOHW.float(), weight_SSCO, algorithm, scratch), dx_BCHW) < limit


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_batch_in_pieces_is_the_same(pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = convolution(16, 16)
    x_BCHW, plus = torch.randn(3, 16, 8, 8), torch.randn(3, 16, 1, 1)
    weight_SSCO = components(module.weight.double(), Algorithm.F4)
    whole = convolve(x_BCHW.double(), weight_SSCO, Algorithm.F4, Scratch(), None, plus.double())
    monkeypatch.setattr(choice, "TILES", 4 * pictures)
    torch.testing.assert_close(
        convolve(x_BCHW.double(), weight_SSCO, Algorithm.F4, Scratch(), None, plus.double()), whole
    )


def allow(monkeypatch: pytest.MonkeyPatch, minimal: bool, patches: bool) -> None:
    """Let the small layers of these tests be computed in other ways than they would be."""
    monkeypatch.setattr(choice, "FEW_PRODUCTS", 0 if minimal else 2**30)
    monkeypatch.setattr(choice, "FEW_CHANNELS", 0)
    monkeypatch.setattr(choice, "PATCH_ELEMENTS", 2**30 if patches else 0)
    monkeypatch.setattr(choice, "TILES", 16)


@pytest.mark.parametrize(("minimal", "patches"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_algorithm_gives_the_same(
    minimal: bool, patches: bool, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, minimal, patches)
    module = convolution(16, 20, stride).double()
    scratch = Scratch()
    for size in [*SIZES, (12, 20)]:
        x_BCHW = torch.randn(2, 16, *size, dtype=torch.float64)
        expected, dy_BOHW, dx_BCHW = reference(module, x_BCHW, torch.clone)
        operation = FusedConvolution(module, scratch, Switches())
        ours, saved = operation.forward(x_BCHW)
        torch.testing.assert_close(ours, expected)
        assert saved == (x_BCHW.shape,)  # the input itself is not kept
        torch.testing.assert_close(operation.backward(saved, dy_BOHW, (True,))[0], dx_BCHW)
        assert operation.backward(saved, dy_BOHW, (False,)) == (None,)


@pytest.mark.parametrize(("minimal", "patches"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("batch", [1, 4])
def test_enlargement(minimal: bool, patches: bool, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, minimal, patches)
    module = convolution(16, 20).double()
    operation = FusedUpsample(module, Scratch(), Switches())
    for size in SIZES:
        x_BCHW = torch.randn(batch, 16, *size, dtype=torch.float64, requires_grad=True)
        large_BCHW = F.interpolate(x_BCHW, scale_factor=2, mode="nearest")
        expected = module(large_BCHW)
        dy_BOHW = torch.randn_like(expected)
        ours, saved = operation.forward(x_BCHW.detach())
        torch.testing.assert_close(ours, expected)
        dx_BCHW = operation.backward(saved, dy_BOHW, (True,))[0]
        torch.testing.assert_close(dx_BCHW, torch.autograd.grad(expected, x_BCHW, dy_BOHW)[0])


def test_a_gradient_that_others_share_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, True, True)
    module = convolution(16, 16)
    x_BCHW, dy_BOHW = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    kept_x, kept_dy = x_BCHW.clone(), dy_BOHW.clone()
    operation = FusedConvolution(module, Scratch(), Switches())
    _, saved = operation.forward(x_BCHW)
    operation.backward(saved, dy_BOHW, (True,))
    assert torch.equal(x_BCHW, kept_x)
    assert torch.equal(dy_BOHW, kept_dy)


def test_the_choice() -> None:
    """Where each was measured to be the fastest, at 512 px and for the small base; never by the batch alone."""
    for channels, outputs, size in ((320, 320, 64), (960, 320, 64), (640, 640, 32), (1920, 640, 32)):
        assert choose(Shape(1, channels, outputs, size, size)) is Algorithm.F4
    for channels, outputs, size in ((1280, 1280, 16), (2560, 1280, 16), (1280, 1280, 8), (1280, 1280, 4)):
        for batch in (1, 4):
            assert choose(Shape(batch, channels, outputs, size, size)) is Algorithm.F2
    for channels, outputs, size in ((32, 32, 16), (192, 64, 8), (256, 128, 4), (64, 32, 16)):
        assert choose(Shape(1, channels, outputs, size, size)) is Algorithm.PATCHES
        assert choose(Shape(1, channels, outputs, size, size), minimal=False) is Algorithm.PATCHES
    assert choose(Shape(1, 1280, 1280, 16, 16, enlarged=True)) is Algorithm.ENLARGED
    assert choose(Shape(1, 320, 320, 64, 64, stride=2)) is Algorithm.STRIDED
    for shape in (Shape(1, 320, 4, 64, 64), Shape(4, 128, 128, 32, 32)):
        assert choose(shape) is Algorithm.LIBRARY
    assert choose(Shape(1, 320, 320, 64, 64), minimal=False) is Algorithm.LIBRARY
    assert choose(Shape(1, 32, 32, 8, 8), cpu=False) is Algorithm.LIBRARY


@pytest.mark.parametrize(("minimal", "patches"), [(True, False), (True, True), (False, True), (False, False)])
@pytest.mark.parametrize("batch", [1, 5])
def test_scratch_and_weights_take_what_the_planner_is_told(
    minimal: bool, patches: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, minimal, patches)
    shapes = [
        Shape(batch, 16, 24, 16, 16),
        Shape(batch, 40, 16, 9, 5),
        Shape(batch, 24, 16, 4, 4),
        Shape(batch, 16, 24, 8, 6, enlarged=True),
        Shape(batch, 16, 16, 8, 8, stride=2),
    ]
    scratch = Scratch()
    for shape in shapes:
        module = convolution(shape.inputs, shape.outputs, shape.stride)
        kernel = Kernel(module, scratch, Switches(), shape.enlarged)
        x_BCHW = torch.randn(batch, shape.inputs, shape.height, shape.width)
        y_BOHW = kernel.forward(x_BCHW)
        kernel.backward(y_BOHW, x_BCHW.shape)
        held = [tensor for form in kernel._weights.values() for tensor in form]
        own = sum(tensor.nbytes for tensor in held if tensor.data_ptr() != module.weight.data_ptr())
        assert own == weight_bytes([shape])
    assert scratch.bytes() == scratch_bytes(shapes)


def test_scratch_does_not_grow_with_the_batch() -> None:
    one, four = (scratch_bytes([Shape(batch, 960, 320, 64, 64)]) for batch in (1, 4))
    assert one == four < 100 * 2**20
