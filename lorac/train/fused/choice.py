"""Which algorithm computes a frozen 3×3 convolution, and the memory that this takes. No torch: the planner asks too.

The choice depends on nothing but the shape, so it is the same however often a build was interrupted. Which of the two
minimal filters a layer uses depends on its channels alone: its transformed weights are held once.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple


class Algorithm(Enum):
    """How a 3×3 convolution is computed."""

    LIBRARY = auto()
    STRIDED = auto()
    """One product of the patches of every other pixel with the weights as they are."""
    PATCHES = auto()
    """One product of all neighbourhoods with the weights."""
    F2 = auto()
    """Minimal filtering with tiles of 2×2 outputs: 4 products for an output instead of 9."""
    F4 = auto()
    """… of 4×4 outputs: 2.25 products for an output, but 2.25 times the weights."""
    ENLARGED = auto()
    """Minimal filtering of a picture whose pixels are 2×2 squares: 2.25 products for an output."""


class Geometry(NamedTuple):
    """Minimal filtering in one direction: windows of `window` inputs, `step` apart, become `components`, which become
    `outputs` neighbouring outputs."""

    step: int
    window: int
    components: int
    outputs: int


GEOMETRIES = {
    Algorithm.F2: (Geometry(2, 4, 4, 2), Geometry(2, 4, 4, 2)),
    Algorithm.F4: (Geometry(4, 6, 6, 4), Geometry(4, 6, 6, 4)),
    Algorithm.ENLARGED: (Geometry(1, 3, 3, 2), Geometry(2, 4, 3, 1)),
}
"""Of the convolution and of the gradient of its input."""


class Shape(NamedTuple):
    """A 3×3 convolution with padding 1; `height` and `width` are those of its input, before it is enlarged."""

    batch: int
    inputs: int
    outputs: int
    height: int
    width: int
    stride: int = 1
    enlarged: bool = False


FEW_PRODUCTS = 2**24
"""Multiplications for one tap. With fewer, one product of patches is faster than a chain of small ones."""
FEW_CHANNELS = 160
"""With fewer, transforms cost more than the products that they save."""
FEW_WEIGHTS = 5 * 2**18
"""Pairs of channels. Beyond them, F4's weights take more than 180 MiB and are read in the time that F2 needs for
everything."""
PATCH_WEIGHTS = 2**17
"""Pairs of channels. Beyond them, no layer gets weights in the layout of patches: that is two more copies."""
PATCH_ELEMENTS = 2**21
"""The largest matrix of patches. A larger one is slower than the library, which never makes it."""
TILES = 256
"""Pictures are convolved together until they have this many tiles: the products gain nothing from more rows, and the
scratch does not grow with the batch."""


def choose(shape: Shape, minimal: bool = True, cpu: bool = True) -> Algorithm:
    """`minimal`: whether minimal filtering may be used (`Switches.winograd`)."""
    if not cpu:
        return Algorithm.LIBRARY
    pixels = shape.batch * shape.height * shape.width * (4 if shape.enlarged else 1)
    pairs = shape.inputs * shape.outputs
    wide = min(shape.inputs, shape.outputs) >= FEW_CHANNELS and shape.stride == 1
    if minimal and wide and (pixels * pairs > FEW_PRODUCTS or pairs > PATCH_WEIGHTS):
        if shape.enlarged:
            return Algorithm.ENLARGED
        return Algorithm.F4 if pairs <= FEW_WEIGHTS else Algorithm.F2
    if 9 * pixels * max(shape.inputs, shape.outputs) <= PATCH_ELEMENTS and pairs <= PATCH_WEIGHTS:
        return Algorithm.PATCHES
    return Algorithm.STRIDED if shape.stride > 1 else Algorithm.LIBRARY


def tiles(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """How many windows a picture has, from top to bottom and from left to right; the last may reach beyond it."""
    return -(-height // geometry.step), -(-width // geometry.step)


def together(batch: int, down: int, across: int) -> int:
    """How many pictures of a batch, of so many tiles each, are convolved at once."""
    return min(batch, max(1, TILES // (down * across)))


class Sizes(NamedTuple):
    """Numbers of elements of the buffers that minimal filtering works in; see `winograd.py`."""

    bordered: int
    first: int
    second: int
    gathered: int
    transformed: int
    products: int


def sizes(pictures: int, down: int, across: int, inputs: int, outputs: int, geometry: Geometry) -> Sizes:
    """`pictures` of `down` · `across` tiles are convolved at once, from `inputs` channels to `outputs`."""
    step, window, components, tile = geometry
    count = pictures * down * across
    row = ((across - 1) * step + window) * inputs
    bordered = pictures * ((down - 1) * step + window) * row
    halves, result = components * tile * count * outputs, tile * tile * count * outputs
    first = max(window * pictures * down * row, halves)
    second = max(components * pictures * down * row, result)
    transformed, products = components * count * inputs, components * count * outputs
    return Sizes(bordered, first, second, window * count * inputs, transformed, products)


def halved(height: int, width: int) -> tuple[int, int]:
    """The size of the output of a convolution with stride 2."""
    return -(-height // 2), -(-width // 2)


def strided_sizes(pictures: int, height: int, width: int, inputs: int) -> tuple[int, int]:
    """Elements of (the pictures with borders, the patches or taps) of a convolution with stride 2."""
    down, across = halved(height, width)
    return pictures * (height + 2) * (width + 2) * inputs, pictures * down * across * 9 * inputs


def _both_ways(shape: Shape, algorithm: Algorithm) -> Iterable[Sizes]:
    there, back = GEOMETRIES[algorithm]
    times = 2 if shape.enlarged else 1
    down, across = tiles(shape.height, shape.width, there)
    pictures = together(shape.batch, down, across)
    yield sizes(pictures, down, across, shape.inputs, shape.outputs, there)
    down, across = tiles(times * shape.height, times * shape.width, back)
    pictures = together(shape.batch, down, across)
    yield sizes(pictures, down, across, shape.outputs, shape.inputs, back)


def scratch_bytes(shapes: Iterable[Shape], minimal: bool = True, cpu: bool = True, element: int = 4) -> int:
    """The most that `Scratch` holds once convolutions of these shapes have run, forward and backward. All share one
    arena; each different small input has a buffer of its own besides."""
    work, bordered, small = 0, 0, set()
    for shape in shapes:
        algorithm = choose(shape, minimal, cpu)
        if algorithm in GEOMETRIES:
            for needed in _both_ways(shape, algorithm):
                bordered, work = max(bordered, needed.bordered), max(work, sum(needed[1:]))
        elif algorithm is Algorithm.STRIDED:
            pictures = together(shape.batch, *halved(shape.height, shape.width))
            padded, patches = strided_sizes(pictures, shape.height, shape.width, shape.inputs)
            bordered, work = max(bordered, padded), max(work, patches)
        elif algorithm is Algorithm.PATCHES:
            times = 2 if shape.enlarged else 1
            size = times * shape.height, times * shape.width
            small |= {(shape.batch, shape.inputs, *size), (shape.batch, shape.outputs, *size)}
    own = sum(batch * channels * (height + 2) * (width + 2) for batch, channels, height, width in small)
    return element * (bordered + work + own)


def weight_bytes(shapes: Iterable[Shape], minimal: bool = True, cpu: bool = True, element: int = 4) -> int:
    """What one layer that is called with these shapes holds besides its own weights."""
    copies = {algorithm: there.components**2 for algorithm, (there, _) in GEOMETRIES.items()}
    copies |= {Algorithm.PATCHES: 2 * 9, Algorithm.LIBRARY: 0, Algorithm.STRIDED: 0}
    forms = {(choose(shape, minimal, cpu), shape.inputs * shape.outputs) for shape in shapes}
    return element * sum(pairs * copies[form] for form, pairs in forms)
