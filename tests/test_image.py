"""From a picture file to trained pixels and masks: resize, crop, transparency, EXIF; and mirrored latents."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lorac.digest import file_digest
from lorac.engine.protocol import Failed, Item, Made
from lorac.kinds import image as kind
from lorac.kinds import latent, weights
from lorac.kinds.image import Bucketing, Refused, decode, fit, header, layers, read_ppm
from lorac.sd.safetensors import tensors_of
from tests.one_item import of_blobs, work
from tests.test_area import area_means

BUCKETING = Bucketing(64, True, 32, 128, 16, False)
SQUARE = replace(BUCKETING, enabled=False)


def noise(width: int, height: int, channels: int = 3, seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]] | Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, "PNG", **how)
    return file.getvalue()


def made(picture: bytes, alpha: str | None, alpha_mask: bool, bucketing: Bucketing = BUCKETING) -> Mapping[str, Any]:
    params = {"alpha": alpha, "alpha_mask": alpha_mask, "bucketing": bucketing.__dict__}
    (result,) = kind.run(work(params, {"picture": picture}))
    if isinstance(result, Failed):
        raise Refused(str(result.problems[0]))
    return result.outputs


def test_shrinking_averages_over_areas_and_crops_the_centre() -> None:
    """3 to 1: each pixel is the mean of 9; 240 x 192 becomes 80 x 64, of which the middle 64 columns stay."""
    pixels = noise(240, 192)
    ours = np.asarray(fit(Image.fromarray(pixels), SQUARE))
    means = pixels.reshape(64, 3, 80, 3, 3).astype(np.float64).mean((1, 3))
    assert np.array_equal(ours, np.rint(means[:, 8:72]))


def test_parts_of_pixels_count_at_ratios_that_are_not_whole() -> None:
    """97 x 70 becomes 89 x 64; a picture and its mask."""
    pixels = noise(97, 70, 4)
    means = area_means(pixels, 89, 64)[:, 12:76]
    assert SQUARE.place(97, 70) == ((89, 64), (64, 64))
    for channels in (slice(0, 3), 3):
        ours = np.asarray(fit(Image.fromarray(pixels[:, :, channels]), SQUARE))
        assert np.array_equal(ours, np.rint(means[:, :, channels]))


def test_a_side_that_stays_while_the_other_shrinks_is_no_enlarging() -> None:
    """kohya's `resize_image` takes INTER_AREA unless a side grows."""
    pixels = noise(33, 129)
    assert BUCKETING.place(33, 129) == ((33, 128), (32, 128))
    ours = np.asarray(fit(Image.fromarray(pixels), BUCKETING))
    assert np.array_equal(ours, np.rint(area_means(pixels, 33, 128)[:, :32]))


def test_enlarging_is_lanczos() -> None:
    """As PIL does it, which kohya calls."""
    small = Image.fromarray(noise(40, 30))
    theirs = small.resize((85, 64), Image.Resampling.LANCZOS).crop((10, 0, 74, 64))
    assert fit(small, SQUARE).tobytes() == theirs.tobytes()


def test_upright_before_anything_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(noise(90, 60))
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    outputs = made(file.getvalue(), None, False)
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    assert outputs["pixels"].endswith(fit(turned, BUCKETING).tobytes())
    assert outputs["bucket"] == b"48x80"


CUT = noise(100, 70, 4)
CUT[:20, :, 3] = 0


@pytest.mark.parametrize("picture", [CUT, CUT[:, :, :3], CUT[:, :, 0]])
def test_drop_is_what_kohya_trains(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """`load_image`: convert("RGB"), which shows the colours under the transparent parts."""
    theirs = Image.open(io.BytesIO(png(picture))).convert("RGB")
    assert decode(png(picture), "drop").tobytes() == theirs.tobytes()


def test_drop_of_a_palette_and_of_grey() -> None:
    palette = Image.fromarray(CUT[:, :, :3]).quantize(16)
    for data in (png(palette, transparency=3), png(Image.fromarray(CUT).convert("LA"))):
        assert decode(data, "drop").tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
        assert decode(data, "black").tobytes() != decode(data, "drop").tobytes()


@pytest.mark.parametrize("alpha", ["white", "black", "#10fF80", "drop"])
def test_the_mask_is_the_alpha_channel_cut_like_the_picture(alpha: str) -> None:
    """Scaled and cropped with the pixels; kohya scales RGBA as one picture."""
    outputs = made(png(CUT), alpha, True)
    width, height, _ = read_ppm(outputs["pixels"])
    assert f"{width}x{height}".encode() == outputs["bucket"]
    head = f"P5\n{width} {height}\n255\n".encode()
    assert outputs["mask"].startswith(head)
    assert len(outputs["mask"]) == len(head) + width * height
    expected = fit(Image.fromarray(CUT[:, :, 3]), BUCKETING)
    assert outputs["mask"] == head + expected.tobytes()
    assert made(png(CUT), alpha, False)["mask"] == b""
    assert made(png(CUT), alpha, False)["pixels"] == outputs["pixels"], "the pixels do not depend on the mask"


def test_the_mask_of_a_large_picture_is_a_mean() -> None:
    picture = noise(192, 192, 4)
    mask = made(png(picture), "drop", True, SQUARE)["mask"]
    found = np.frombuffer(mask[-64 * 64 :], np.uint8).reshape(64, 64).astype(int)
    assert np.abs(found - picture[:, :, 3].reshape(64, 3, 64, 3).mean((1, 3))).max() < 1.0


def test_an_opaque_picture_has_no_mask() -> None:
    opaque = CUT.copy()
    opaque[:, :, 3] = 255
    assert made(png(opaque), None, True)["mask"] == made(png(CUT[:, :, :3]), None, True)["mask"] == b""
    assert layers(png(opaque), None)[1] is None


def test_a_mask_does_not_choose_a_background() -> None:
    with pytest.raises(Refused, match="has transparent parts and the recipe does not say what is behind them"):
        made(png(CUT), None, True)


def test_the_header_says_what_may_be_transparent(tmp_path: Path) -> None:
    palette = Image.fromarray(CUT[:, :, :3]).quantize(16)
    for data, transparent in [
        (png(CUT), True),
        (png(CUT[:, :, :3]), False),
        (png(palette), False),
        (png(palette, transparency=3), True),
    ]:
        (tmp_path / "a.png").write_bytes(data)
        assert header(str(tmp_path / "a.png")) == ((100, 70), transparent)


def test_pictures_too_narrow_for_any_bucket_are_refused() -> None:
    with pytest.raises(Refused, match="of 200x10 pixels is narrower than the smallest bucket, 16"):
        made(png(noise(200, 10)), None, False, replace(BUCKETING, no_upscale=True))


def test_the_flat_buckets_of_2023_are_used() -> None:
    wide = png(noise(400, 100))
    assert made(wide, None, False, Bucketing(512, True, 320, 960, 64, False))["bucket"] == b"768x320"
    assert made(wide, None, False, Bucketing(512, True, 320, 960, 64, False, "2023"))["bucket"] == b"960x256"


def vae_of(base: Path, scratch: Path) -> bytes:
    """The output of the kind `weights`."""
    reading = replace(work({}, {}, {}), hints={"base": str(base)}, shared={"base": file_digest(base)}, scratch=scratch)
    (parts,) = weights.run(reading)
    assert not isinstance(parts, Failed)
    return Path(str(parts.outputs["vae"])).read_bytes()


def test_a_mirrored_latent_is_that_of_the_mirrored_picture(tiny_base: Path, tmp_path: Path) -> None:
    """And not the mirrored latent: the VAE's convolutions are not symmetric."""
    vae = vae_of(tiny_base, tmp_path)
    picture = Image.fromarray(noise(64, 64))

    def encoded(of: Image.Image, params: Mapping[str, Any]) -> Any:
        (result,) = latent.run(work(params, {"pixels": b"P6\n64 64\n255\n" + of.tobytes()}, {"vae": vae}))
        assert not isinstance(result, Failed)
        return result.outputs["latent"]

    flipped = encoded(picture, {"flip": True})
    assert flipped == encoded(ImageOps.mirror(picture), {})
    assert flipped != encoded(picture, {})


def test_bits_of_latents_depend_on_neither_company_nor_cores(tiny_base: Path, tmp_path: Path) -> None:
    """And the items come in their order; the reference encodes one picture on one thread."""
    vae = vae_of(tiny_base, tmp_path)
    sizes = [(64, 64), (48, 80), (64, 64), (80, 48), (64, 64)]
    pictures = [f"P6\n{w} {h}\n255\n".encode() + noise(w, h).tobytes() for w, h in sizes]
    blobs = {str(number).encode(): data for number, data in enumerate(pictures)} | {b"vae": vae}

    def encoded(numbers: list[int]) -> list[Any]:
        items = [Item(number, f"{number}.png", {}, {"pixels": str(number).encode()}) for number in numbers]
        made = list(latent.run(of_blobs(blobs, items=items, shared={"vae": b"vae"})))
        assert [one.index for one in made] == numbers and all(isinstance(one, Made) for one in made)
        return [one.outputs["latent"] for one in made if isinstance(one, Made)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = encoded([0, 1, 2, 3, 4])
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert together == [encoded([number])[0] for number in range(5)]
        with torch.inference_mode():
            values = torch.from_numpy(noise(48, 80)).permute(2, 0, 1)[None].float() / 127.5 - 1
            mean, logvar = weights.vae(vae).encode(values)
        found = tensors_of(together[1])
        assert found["mean"].equal(mean[0]) and found["logvar"].equal(logvar[0])
    finally:
        torch.set_num_threads(before)
