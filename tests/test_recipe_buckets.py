"""Buckets: golden values from sd-scripts 48d368fa (`make_bucket_resolutions`, `BucketManager.select_bucket`)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorac.recipe.buckets import Size, buckets, choose_bucket, crop_offset, no_upscale, scaled_size, side_limits

POPUP = [(320, 704), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384), (704, 320), (768, 320)]
FLAT = [(256, 832), (256, 896), (256, 960)]
"""January 2023's list has these and their transposes beside POPUP, though 256 is below the shortest side."""
TALL_OF_17 = [(256, 832), (256, 896), (256, 960), (256, 1024)]
MINI = [(80, 176), (80, 192), (96, 160), (112, 144), (128, 128), (144, 112), (160, 96), (176, 80), (192, 80)]


def test_the_nine_buckets_of_the_article() -> None:
    assert buckets(512, 320, 960, 64) == POPUP
    assert buckets(512, *side_limits(512, 64), 64) == POPUP


def test_other_limits() -> None:
    wide = [(w, h) for h, w in TALL_OF_17]
    assert buckets(512, 256, 1024, 64) == [*TALL_OF_17, *POPUP, *wide]
    assert len(buckets(512, 256, 1024, 64)) == 17
    assert buckets(128, *side_limits(128, 16), 16) == MINI
    assert len(buckets(768, 320, 1536, 64)) == 27
    assert len(buckets(640, 320, 960, 64)) == 13


def test_the_fifteen_buckets_of_january_2023() -> None:
    assert buckets(512, 320, 960, 64, flat=True) == [*FLAT, *POPUP, *((w, h) for h, w in FLAT)]
    assert len(POPUP) == 9
    assert len(buckets(512, 320, 960, 64, flat=True)) == 15


def made_in_2023(resolution: int, shortest: int, longest: int, step: int) -> list[Size]:
    """`make_bucket_resolutions` of sd-scripts v0.4.0: areas in cells of step x step, no test of the height."""
    cells = (resolution // step) * (resolution // step)
    side = int(math.sqrt(cells)) * step
    found = {(side, side)}
    width = shortest
    while width <= longest:
        height = min(longest, cells // (width // step) * step)
        if height:  # v0.4.0 fails on a bucket of no height
            found |= {(width, height), (height, width)}
        width += step
    return sorted(found)


def made_today(resolution: int, shortest: int, longest: int, step: int) -> list[Size]:
    """The same of 48d368fa."""
    area = resolution * resolution
    side = int(math.sqrt(area) // step) * step
    found = {(side, side)}
    width = shortest
    while width <= longest:
        height = min(longest, int(area // width // step) * step)
        if height >= shortest:
            found |= {(width, height), (height, width)}
        width += step
    return sorted(found)


@given(st.integers(16, 96), st.integers(1, 16), st.integers(1, 32), st.sampled_from([16, 32, 64]))
def test_lists_are_kohyas(resolution: int, shortest: int, longest: int, step: int) -> None:
    resolution *= 16
    sides = (resolution, min(shortest, resolution // step) * step, resolution + longest * step)
    assert buckets(*sides, step) == made_today(*sides, step)
    assert buckets(*sides, step, flat=True) == made_in_2023(*sides, step)


def selected(width: int, height: int, sizes: list[Size]) -> tuple[Size, Size]:
    """`BucketManager.select_bucket` with numpy, as there: (bucket, scaled size)."""
    ratio = width / height
    if (width, height) in set(sizes):
        bucket = (width, height)
    else:
        bucket = sizes[int(np.abs(np.array([w / h for w, h in sizes]) - ratio).argmin())]
    scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
    return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))


def trimmed(scaled: Size, bucket: Size) -> Size:
    """`trim_and_resize_if_required`: where the crop begins."""
    left, top = ((have - want) // 2 if have > want else 0 for have, want in zip(scaled, bucket, strict=True))
    return left, top


LISTS = [POPUP, sorted({*POPUP, *FLAT, *((w, h) for h, w in FLAT)}), [*TALL_OF_17, *POPUP], MINI]


@settings(max_examples=400)
@given(st.integers(16, 6000), st.integers(16, 6000), st.sampled_from(LISTS))
def test_choice_scale_and_crop_are_kohyas(width: int, height: int, sizes: list[Size]) -> None:
    bucket, scaled = selected(width, height, sizes)
    assert choose_bucket(width, height, sizes) == bucket
    assert scaled_size(width, height, bucket) == scaled
    assert crop_offset(scaled, bucket) == trimmed(scaled, bucket)


def test_of_two_equally_near_buckets_the_first_is_taken() -> None:
    """0.5 and 1.5 are exactly as far from 1, in float64 too."""
    sizes = [(128, 256), (384, 256)]
    assert choose_bucket(100, 100, sizes) == selected(100, 100, sizes)[0] == (128, 256)
    assert choose_bucket(100, 100, sizes[::-1]) == selected(100, 100, sizes[::-1])[0] == (384, 256)


def reduced(width: int, height: int, resolution: int, step: int) -> tuple[Size, Size]:
    """`select_bucket` with no_upscale: (scaled size, bucket)."""

    def to_steps(x: float) -> int:
        whole = int(x + 0.5)
        return whole - whole % step

    area, ratio, scaled = resolution * resolution, width / height, (width, height)
    if width * height > area:
        ideal_width = math.sqrt(area * ratio)
        ideal_height = area / ideal_width
        wide, tall = to_steps(ideal_width), to_steps(ideal_height)
        by_width, by_height = wide / to_steps(wide / ratio), to_steps(tall * ratio) / tall
        if abs(by_width - ratio) < abs(by_height - ratio):
            scaled = (wide, int(wide / ratio + 0.5))
        else:
            scaled = (int(tall * ratio + 0.5), tall)
    return scaled, (scaled[0] - scaled[0] % step, scaled[1] - scaled[1] % step)


@settings(max_examples=400)
@given(st.integers(64, 6000), st.integers(64, 6000), st.sampled_from([(512, 64), (768, 64), (128, 16), (640, 32)]))
def test_no_upscale_is_kohyas(width: int, height: int, how: tuple[int, int]) -> None:
    scaled, bucket = no_upscale(width, height, *how)
    if bucket == (0, 0):  # kohya divides by zero, or trains an empty bucket
        return
    assert (scaled, bucket) == reduced(width, height, *how)


def test_a_square_only() -> None:
    assert buckets(512, 512, 512, 64) == [(512, 512)]


@pytest.mark.parametrize(
    ("size", "bucket", "scaled", "small_scaled", "small_bucket"),
    [
        ((1024, 768), (576, 448), (597, 448), (512, 384), (512, 384)),
        ((768, 1024), (448, 576), (448, 597), (384, 512), (384, 512)),
        ((1920, 1080), (640, 384), (683, 384), (683, 384), (640, 384)),
        ((1080, 1920), (384, 640), (384, 683), (384, 683), (384, 640)),
        ((3000, 1000), (768, 320), (960, 320), (768, 256), (768, 256)),
        ((500, 500), (512, 512), (512, 512), (500, 500), (448, 448)),
        ((64, 64), (512, 512), (512, 512), (64, 64), (64, 64)),
        ((700, 300), (768, 320), (768, 329), (700, 300), (640, 256)),
    ],
)
def test_golden_pictures(size: Size, bucket: Size, scaled: Size, small_scaled: Size, small_bucket: Size) -> None:
    assert choose_bucket(*size, POPUP) == bucket
    assert scaled_size(*size, bucket) == scaled
    assert no_upscale(*size, 512, 64) == (small_scaled, small_bucket)


@pytest.mark.parametrize("size", [(20, 500), (63, 63), (10_000, 100)])
def test_too_narrow_for_any_bucket(size: Size) -> None:
    assert no_upscale(*size, 512, 64)[1] == (0, 0)


def test_an_exact_size_beats_a_nearer_ratio() -> None:
    assert choose_bucket(320, 704, [(320, 705), (320, 704)]) == (320, 704)
    assert choose_bucket(640, 1408, [(160, 352), (320, 704)]) == (160, 352)


@given(st.integers(16, 5000), st.integers(16, 5000))
def test_a_scaled_picture_covers_its_bucket_on_one_side_exactly(width: int, height: int) -> None:
    bucket = choose_bucket(width, height, POPUP)
    scaled = scaled_size(width, height, bucket)
    assert scaled[0] >= bucket[0]
    assert scaled[1] >= bucket[1]
    assert scaled[0] == bucket[0] or scaled[1] == bucket[1]
    left, upper = crop_offset(scaled, bucket)
    assert 0 <= scaled[0] - bucket[0] - 2 * left <= 1
    assert 0 <= scaled[1] - bucket[1] - 2 * upper <= 1


@given(st.integers(64, 5000), st.integers(64, 5000))
def test_no_upscale_never_enlarges(width: int, height: int) -> None:
    scaled, bucket = no_upscale(width, height, 512, 64)
    if bucket == (0, 0):
        assert min(width, height) ** 2 * 512 * 512 < 64 * 64 * width * height
        return
    assert scaled[0] <= width
    assert scaled[1] <= height
    assert 0 <= scaled[0] - bucket[0] < 64
    assert 0 <= scaled[1] - bucket[1] < 64
    assert min(bucket) >= 64
