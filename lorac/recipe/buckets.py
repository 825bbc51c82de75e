"""Aspect-ratio buckets as kohya-ss/sd-scripts makes and chooses them (`model_util.py`, `train_util.py`, 2026).

Sizes are (width, height) in pixels. A picture is scaled to cover its bucket, then cropped at its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, sqrt

Size = tuple[int, int]


def side_limits(resolution: int, step: int) -> tuple[int, int]:
    """Shortest and longest side when the recipe gives none: 5/8 and 15/8 of the resolution, rounded to steps.

    At 512 these are the 320 and 960 of the popup that the article used.
    """
    return max(step, resolution * 5 // 8 // step * step), resolution * 15 // 8 // step * step


def buckets(resolution: int, shortest: int, longest: int, step: int, flat: bool = False) -> list[Size]:
    """All buckets with at most resolution² pixels and sides between `shortest` and `longest`, sorted.

    For each width from `shortest` to `longest` the largest height that fits, and the transposed bucket; and a square.
    512, 320, 960, 64 give 9 buckets from 320x704 to 768x320.
    `flat`: as kohya did until v0.4 (January 2023): the area was counted in cells of step², and a height below
    `shortest` did no harm, which gives 15 buckets from 256x832 to 960x256.
    """
    cells = (resolution // step) ** 2
    area = cells * step * step if flat else resolution * resolution
    square = isqrt(area) // step * step
    sizes = {(square, square)}
    for width in range(shortest, longest + 1, step):
        height = min(longest, cells // max(1, width // step) * step if flat else area // width // step * step)
        if height >= (step if flat else shortest):
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def choose_bucket(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The bucket of a picture: its own size if there is one, else the nearest ratio of width to height.

    The distance is the plain difference of the ratios, so wide pictures are matched more closely than tall ones; of
    two equally near buckets the first is taken.
    """
    if (width, height) in sizes:
        return width, height
    ratio = width / height
    return min(sizes, key=lambda size: abs(size[0] / size[1] - ratio))


def scaled_size(width: int, height: int, bucket: Size) -> Size:
    """The size to which a picture is scaled so that it covers its bucket, before the crop."""
    wider = width / height > bucket[0] / bucket[1]
    scale = bucket[1] / height if wider else bucket[0] / width
    return int(width * scale + 0.5), int(height * scale + 0.5)


def crop_offset(scaled: Size, bucket: Size) -> Size:
    """The left upper corner of the centre crop."""
    return (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2


def no_upscale(width: int, height: int, resolution: int, step: int) -> tuple[Size, Size]:
    """The scaled size and the bucket of a picture that must not be enlarged.

    A picture of more than resolution² pixels is scaled down to about that area, one side exactly on a step, whichever
    side keeps the ratio better; a smaller one stays. The bucket is the scaled size cut down to steps.
    For a picture that is narrower than a step, or would be, it is (0, 0).
    """
    scaled = (width, height)
    area = resolution * resolution
    ideal = min(1.0, sqrt(area / (width * height)))
    if min(width, height) * ideal < step:
        return scaled, (0, 0)
    if width * height > area:
        ratio = width / height
        ideal_width = sqrt(area * ratio)
        by_width = _to_step(ideal_width, step)
        by_width_height = _to_step(by_width / ratio, step)
        by_height = _to_step(area / ideal_width, step)
        by_height_width = _to_step(by_height * ratio, step)
        if abs(by_width / by_width_height - ratio) < abs(by_height_width / by_height - ratio):
            scaled = (by_width, int(by_width / ratio + 0.5))
        else:
            scaled = (int(by_height * ratio + 0.5), by_height)
    return scaled, (scaled[0] - scaled[0] % step, scaled[1] - scaled[1] % step)


def _to_step(length: float, step: int) -> int:
    rounded = int(length + 0.5)
    return rounded - rounded % step
