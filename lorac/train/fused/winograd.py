"""Minimal filtering (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308): 3×3 convolutions with fewer multiplications.

A tile of m×m outputs needs s×s inputs, s = m + 2. With w the kernel and d the tile's inputs, its outputs are

    Aᵀ [(G w Gᵀ) · (Bᵀ d B)] A,

where · multiplies component by component, so that for all tiles and channels each of the s² components is one matrix
product. That takes s²/m² products for one output instead of 9: 4 for m = 2, 2.25 for m = 4.

The gradient of the input is a convolution with the kernel turned round. The filters interpolate polynomials at points
that are closed under p → −1/p; so the turned kernel's components are the kernel's own at other points, up to a factor
and signs that alternate from pixel to pixel, and both go into the small matrices: one copy of G w Gᵀ serves both ways.
(They also round better with 1/2 and −2 than with the usual 2 and −2: 1.7e-6 instead of 2.7e-6 for 320 channels; see
Barabasz et al. 2020, arXiv:1803.10986.)

Shape suffixes: B batch, C channels that are convolved, O channels of the result, H height, W width, S = s, M = m,
T tiles of all pictures, D those of a picture from top to bottom, X those from left to right.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lorac.train.fused.choice import GEOMETRIES, Algorithm, Geometry, sizes, tiles, together
from lorac.train.fused.scratch import Scratch

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}
"""By outputs of a tile; besides these there is always infinity."""
CONSTANT = 1
"""The component that goes into all outputs alike, in every filter here: what is added to it in both directions is added
to the whole tile."""


class Filter(NamedTuple):
    """Minimal filtering in one direction: Bᵀ (S, N) from the N inputs of a window, and Aᵀ (M, S)."""

    geometry: Geometry
    inputs: Tensor
    outputs: Tensor


def _matrices(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bᵀ (S, S), G (S, 3) and Aᵀ (M, S) in float64, by Toom and Cook's interpolation."""
    points = POINTS[tile]
    size = tile + 2
    inputs_SS, kernel_S3 = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 3, dtype=torch.float64)
    outputs_MS = torch.zeros(tile, size, dtype=torch.float64)
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        inputs_SS[row, :-1] = _polynomial(others)
        scale = torch.tensor([point - other for other in others], dtype=torch.float64).prod()
        kernel_S3[row] = torch.tensor([point**n for n in range(3)], dtype=torch.float64) / scale
        outputs_MS[:, row] = torch.tensor([point**n for n in range(tile)], dtype=torch.float64)
    inputs_SS[-1], kernel_S3[-1, -1], outputs_MS[-1, -1] = _polynomial(list(points)), 1.0, 1.0
    return inputs_SS, kernel_S3, outputs_MS


def _polynomial(roots: list[float]) -> Tensor:
    """The coefficients of Π (x − root), from the constant one up."""
    product = torch.ones(1, dtype=torch.float64)
    for root in roots:
        product = torch.nn.functional.pad(product, (1, 0)) - root * torch.nn.functional.pad(product, (0, 1))
    return product


def _turned(tile: int) -> tuple[Tensor, Tensor]:
    """(Bᵀ, Aᵀ) for the kernel turned round, whose components are those of the kernel itself.

    With signs (+, −, +) the turned kernel is, at the point −1/p, a multiple of the kernel at p; and a convolution with
    alternating signs is the one without, between two alternations of signs.
    """
    inputs_SS, kernel_S3, outputs_MS = _matrices(tile)
    turned_S3 = kernel_S3.flip(1) * torch.tensor([1.0, -1.0, 1.0])
    unit_S3 = kernel_S3 / kernel_S3.norm(dim=1, keepdim=True)
    place_S = (unit_S3 @ (turned_S3 / turned_S3.norm(dim=1, keepdim=True)).T).abs().argmax(dim=1)
    factor_S = (turned_S3[place_S] * kernel_S3).sum(1) / (kernel_S3 * kernel_S3).sum(1)
    signs_S = 1.0 - 2.0 * (torch.arange(tile + 2) % 2)
    return inputs_SS[place_S] * signs_S * factor_S[:, None], outputs_MS[:, place_S] * signs_S[:tile, None]


def _enlarged() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Bᵀ, G and Aᵀ where each input stands for two neighbouring pixels, and the (Bᵀ, Aᵀ) of the gradient.

    Of inputs (a, b, c) the outputs are w₀ a + (w₁ + w₂) b and (w₀ + w₁) b + w₂ c, which is (w₀ + w₁ + w₂) b and, each
    for one of them, w₀ (a − b) and w₂ (c − b). This is the filter of 2 outputs with the component left out that is zero
    for such inputs.
    """
    rows = [
        [[1.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 1.0]],
        [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]],
        [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]],
        [[0.0, -1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 0.0, -1.0, 0.0]],
        [[1.0, 1.0, 1.0]],
    ]
    inputs, kernel, outputs, back_inputs, back_outputs = (torch.tensor(r, dtype=torch.float64) for r in rows)
    return inputs, kernel, outputs, back_inputs, back_outputs


@cache
def _filters(algorithm: Algorithm, dtype: torch.dtype) -> tuple[Filter, Filter, Tensor]:
    """(filter of the convolution, filter of the gradient, G (S, 3))."""
    if algorithm is Algorithm.ENLARGED:
        inputs, kernel_S3, outputs, *turned = _enlarged()
    else:
        tile = GEOMETRIES[algorithm][0].outputs
        (inputs, kernel_S3, outputs), turned = _matrices(tile), list(_turned(tile))
    pairs = zip(GEOMETRIES[algorithm], ((inputs, outputs), turned), strict=True)
    there, back = (Filter(geometry, *(matrix.to(dtype).contiguous() for matrix in pair)) for geometry, pair in pairs)
    return there, back, kernel_S3.to(dtype)


def components(weight_OC33: Tensor, algorithm: Algorithm) -> Tensor:
    """G w Gᵀ as (S, S, C, O), contiguous."""
    outputs, channels = weight_OC33.shape[:2]
    kernel_S3 = _filters(algorithm, weight_OC33.dtype)[2]
    taps = weight_OC33.permute(2, 3, 1, 0).reshape(9, -1)
    return torch.mm(torch.kron(kernel_S3, kernel_S3), taps).view(len(kernel_S3), -1, channels, outputs)


def convolve(
    x_BCHW: Tensor,
    weight_SSCO: Tensor,
    algorithm: Algorithm,
    scratch: Scratch,
    bias_O: Tensor | None = None,
    plus: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """The convolution of `x_BCHW`, or of `silu(x_BCHW)`, and `plus` of any shape that broadcasts to the result, with
    channels last. `weight_SSCO` as `components` made it."""
    there = _filters(algorithm, x_BCHW.dtype)[0]
    return _by_pictures(x_BCHW, weight_SSCO, there, scratch, bias_O, plus, silu)


def gradient(dy_BOHW: Tensor, weight_SSCO: Tensor, algorithm: Algorithm, scratch: Scratch) -> Tensor:
    """That of the input, from that of the output, with channels last."""
    back = _filters(algorithm, dy_BOHW.dtype)[1]
    return _by_pictures(dy_BOHW, weight_SSCO.transpose(2, 3), back, scratch, None, None, False)


def _by_pictures(
    x_BCHW: Tensor,
    weight_SSCO: Tensor,
    minimal: Filter,
    scratch: Scratch,
    bias_O: Tensor | None,
    plus: Tensor | None,
    silu: bool,
) -> Tensor:
    step, _, _, tile = minimal.geometry
    batch, _, height, width = x_BCHW.shape
    y_BHWO = x_BCHW.new_empty(batch, height * tile // step, width * tile // step, weight_SSCO.shape[-1])
    y_BOHW = y_BHWO.permute(0, 3, 1, 2)
    plus_BOHW = None if plus is None else plus.expand(y_BOHW.shape)
    pictures = together(batch, *tiles(height, width, minimal.geometry))
    for first in range(0, batch, pictures):
        some = slice(first, first + pictures)
        y_BDMXMO = _tiles(x_BCHW[some], weight_SSCO, minimal, scratch, bias_O, silu)
        _put(y_BDMXMO, y_BOHW[some], None if plus_BOHW is None else plus_BOHW[some])
    return y_BOHW


def _tiles(
    x_BCHW: Tensor, weight_SSCO: Tensor, minimal: Filter, scratch: Scratch, bias_O: Tensor | None, silu: bool
) -> Tensor:
    """The tiles of the convolution, a view of scratch (B, D, M, X, M, O).

    Inputs are transformed from top to bottom for all tiles at once, everything else for one row of components after the
    other, so that what is gathered, transformed and multiplied stays in the cache.
    """
    geometry, inputs_SN, outputs_MS = minimal
    step, window, size, tile = geometry
    batch, channels, height, width = x_BCHW.shape
    outputs = weight_SSCO.shape[-1]
    down, across = tiles(height, width, geometry)
    count, row = batch * down * across, (across - 1) * step + window
    needed = sizes(batch, down, across, channels, outputs, geometry)
    first, second, gathered, transformed, products = scratch.buffers(x_BCHW, needed[1:])

    border_BHWC = scratch.bordered(x_BCHW, (batch, (down - 1) * step + window, row, channels), (height, width))
    inside_BCHW = border_BHWC[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
    if silu:
        torch.ops.aten.silu.out(x_BCHW, out=inside_BCHW)
    else:
        inside_BCHW.copy_(x_BCHW)
    bands_NBDWC = first[: window * batch * down * row * channels].view(window, batch, down, row, channels)
    bands_NBDWC.copy_(border_BHWC.unfold(1, window, step).permute(4, 0, 1, 2, 3))
    bands_SBDWC = second[: size * batch * down * row * channels].view(size, batch, down, row, channels)
    torch.mm(inputs_SN, bands_NBDWC.view(window, -1), out=bands_SBDWC.view(size, -1))

    windows_SNBDXC = bands_SBDWC.unfold(3, window, step).permute(0, 5, 1, 2, 3, 4)
    gathered_NBDXC, gathered_NR = gathered.view(window, batch, down, across, channels), gathered.view(window, -1)
    transformed_STC, products_STO = transformed.view(size, count, channels), products.view(size, count, outputs)
    halves_SMR = first[: size * tile * count * outputs].view(size, tile, -1)
    for component in range(size):
        gathered_NBDXC.copy_(windows_SNBDXC[component])
        torch.mm(inputs_SN, gathered_NR, out=transformed.view(size, -1))
        torch.bmm(transformed_STC, weight_SSCO[component], out=products_STO)
        if component == CONSTANT and bias_O is not None:
            products_STO[CONSTANT].add_(bias_O)
        torch.mm(outputs_MS, products.view(size, -1), out=halves_SMR[component])
    y_MR = second[: tile * tile * count * outputs].view(tile, -1)
    torch.mm(outputs_MS, halves_SMR.view(size, -1), out=y_MR)
    return y_MR.view(tile, tile, batch, down, across, outputs).permute(2, 3, 0, 4, 1, 5)


def _put(y_BDMXMO: Tensor, out_BOHW: Tensor, plus_BOHW: Tensor | None) -> None:
    """Write the part of the tiles that is within the picture, and add `plus_BOHW`."""
    _, down, tile, across, _, _ = y_BDMXMO.shape
    _, _, height, width = out_BOHW.shape
    if (height, width) != (down * tile, across * tile):
        y_BHWO = y_BDMXMO.flatten(3, 4).flatten(1, 2)[:, :height, :width]
        tile, across, y_BDMXMO = 1, width, y_BHWO[:, :, None, :, None]

    def in_tiles(z_BOHW: Tensor) -> Tensor:
        batch, channels, _, _ = z_BOHW.shape
        return z_BOHW.permute(0, 2, 3, 1).view(batch, -1, tile, across, tile, channels)

    if plus_BOHW is None:
        in_tiles(out_BOHW).copy_(y_BDMXMO)
    else:
        torch.add(y_BDMXMO, in_tiles(plus_BOHW), out=in_tiles(out_BOHW))
