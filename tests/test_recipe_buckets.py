"""Buckets: golden values from sd-scripts 48d368fa (`make_bucket_resolutions`, `BucketManager.select_bucket`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorac.recipe.buckets import Size, buckets, choose_bucket, crop_offset, no_upscale, scaled_size, side_limits

POPUP = [(320, 704), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384), (704, 320), (768, 320)]
TALL_OF_17 = [(256, 832), (256, 896), (256, 960), (256, 1024)]
MINI = [(80, 176), (80, 192), (96, 160), (112, 144), (128, 128), (144, 112), (160, 96), (176, 80), (192, 80)]


def test_the_nine_buckets_of_the_article() -> None:
    assert buckets(512, 320, 960, 64) == POPUP
    assert buckets(512, *side_limits(512, 64), 64) == POPUP


def test_other_limits() -> None:
    wide = [(w, h) for h, w in TALL_OF_17]
    assert buckets(512, 256, 1024, 64) == [*TALL_OF_17, *POPUP, *wide]
    assert buckets(128, *side_limits(128, 16), 16) == MINI
    assert len(buckets(768, 320, 1536, 64)) == 27
    assert len(buckets(640, 320, 960, 64)) == 13


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
