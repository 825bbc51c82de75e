"""A picture file becomes the pixels that are trained: decoded, upright, on a background, in a bucket.

The output is a binary PPM (`P6`), so the same pixels are the same bytes whatever file they came from: a re-saved
picture stops here. Where the loss is to count by opacity, `mask` is the picture's alpha channel at the same size as a
binary PGM (`P5`), or nothing for an opaque picture. Pictures are never guessed at: what has no one meaning is refused
by name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.listing import shown_path
from lorac.recipe.buckets import Size, buckets, choose_bucket, crop_offset, no_upscale, scaled_size

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "image"
VERSION = 3
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("pixels", "bucket", "mask")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")
"""Pillow's names of the ways to store colours that are understood; other ones are refused."""
MAX_PIXELS = 64_000_000
"""More than any camera or scanner gives; a file that claims more is an attack or a mistake."""
HIDDEN = "drop"
"""`alpha` for the colours that a picture has under its transparent parts: what kohya trains."""
TO_RGB = "convert it to 8-bit RGB in an image editor"


class Refused(Exception):
    """This picture cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Bucketing:
    """Which sizes pictures are trained at, in pixels; `resolution` is the side of the square of the same area."""

    resolution: int
    enabled: bool
    smallest: int
    largest: int
    step: int
    no_upscale: bool
    list: str = "today"

    def place(self, width: int, height: int) -> tuple[Size, Size]:
        """(size to scale a picture to, bucket to crop it to). Raises Refused for a picture that fills no bucket."""
        if self.enabled and self.no_upscale:
            scaled, bucket = no_upscale(width, height, self.resolution, self.step)
            if bucket == (0, 0):
                cause = f"of {width}x{height} pixels is narrower than the smallest bucket, {self.step}"
                raise Refused(f"{cause}; enlarge it, or take bucket_no_upscale out")
            return scaled, bucket
        sizes = buckets(self.resolution, self.smallest, self.largest, self.step, flat=self.list == "2023")
        bucket = choose_bucket(width, height, sizes) if self.enabled else (self.resolution, self.resolution)
        return scaled_size(width, height, bucket), bucket


def run(work: Work) -> Iterable[Made | Failed]:
    bucketing = Bucketing(**work.params["bucketing"])
    for item in work.items:
        try:
            image, opacity = layers(work.read(item.inputs["picture"]), work.params["alpha"])
            image = fit(image, bucketing)
            mask = fit(opacity, bucketing) if opacity and work.params["alpha_mask"] else None
        except Refused as refusal:
            cause, _, remedy = str(refusal).partition("; ")
            yield Failed(item.index, [Problem(shown_path(item.name), cause, remedy)])
            continue
        size = f"{image.width}x{image.height}".encode()
        yield Made(item.index, {"pixels": _pnm(image), "bucket": size, "mask": _pnm(mask) if mask else b""})


def _pnm(image: Image) -> bytes:
    """Grey as binary PGM, RGB as binary PPM."""
    magic = "P5" if image.mode == "L" else "P6"
    return f"{magic}\n{image.width} {image.height}\n255\n".encode() + image.tobytes()


def decode(data: bytes, alpha: str | None) -> Image:
    """The colours of `layers`."""
    return layers(data, alpha)[0]


def layers(data: bytes, alpha: str | None) -> tuple[Image, Image | None]:
    """(RGB, 8-bit alpha channel or None if opaque), both upright. Raises Refused.

    Transparent parts are put on the colour `alpha` ("white", "black", "#rrggbb"), or show what is hidden under them
    ("drop"). Of 16 bits per channel the upper 8 are used.
    """
    from PIL import Image, ImageOps

    with _opened(io.BytesIO(data)) as image:
        image.load()
        if image.mode.startswith("I;16"):  # Pillow narrows RGB by itself, but not grey
            high = image.tobytes()[image.mode == "I;16" :: 2]
            image = Image.frombytes("L", image.size, high)
        image = ImageOps.exif_transpose(image)
        if "A" not in image.mode and "transparency" not in image.info:
            return image.convert("RGB"), None
        image = image.convert("RGBA")
    opacity = image.getchannel("A")
    if opacity.getextrema() == (255, 255):
        return image.convert("RGB"), None
    if alpha == HIDDEN:
        return image.convert("RGB"), opacity
    if alpha is None:
        cause = "has transparent parts and the recipe does not say what is behind them"
        raise Refused(f'{cause}; add alpha = "white" to its table in the recipe')
    behind = Image.new("RGBA", image.size, alpha)
    return Image.alpha_composite(behind, image).convert("RGB"), opacity


def header(path: str) -> tuple[Size, bool]:
    """((width, height) upright, whether it may have transparent parts) of a picture file, without reading its pixels.

    Raises Refused for what `layers` would not even open.
    """
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 exchange the sides
        size = (image.height, image.width) if turned else image.size
        return size, "A" in image.mode or "transparency" in image.info


@contextmanager
def _opened(file: str | io.BytesIO) -> Iterator[Image]:
    """A picture of a known format and mode; whatever Pillow raises inside becomes Refused."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        with image:
            if getattr(image, "n_frames", 1) > 1:
                raise Refused("is animated; save the frame you want as a picture of its own")
            if image.mode == "CMYK":
                raise Refused(f"is a CMYK picture, whose colours depend on a print profile; {TO_RGB}")
            if image.mode not in MODES:
                raise Refused(f'stores colours in a way that lorac does not read ("{image.mode}"); {TO_RGB}')
            yield image
    except Refused:
        raise
    except UnidentifiedImageError:
        names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise Refused(f"is no {names} picture, whatever its name says; remove it from the folder") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(f"has more than {MAX_PIXELS // 10**6} million pixels; scale it down") from None
    except Exception as error:  # Pillow's plug-ins raise whatever a damaged file leads them to
        raise Refused(f"is truncated or damaged ({error}); restore it or remove it from the folder") from None


def fit(image: Image, bucketing: Bucketing) -> Image:
    """Scale RGB or grey to cover the picture's bucket, then crop around the centre, as kohya does.

    Where neither side grows, pixels are means of areas (kohya: cv2.INTER_AREA), else Lanczos (kohya since 2025).
    """
    import numpy as np
    from PIL.Image import Resampling, fromarray

    from lorac.area import shrunk

    scaled, bucket = bucketing.place(image.width, image.height)
    if scaled != image.size:
        shrinks = scaled[0] <= image.width and scaled[1] <= image.height
        image = fromarray(shrunk(np.asarray(image), *scaled)) if shrinks else image.resize(scaled, Resampling.LANCZOS)
    left, top = crop_offset(scaled, bucket)
    return image.crop((left, top, left + bucket[0], top + bucket[1]))


def read_ppm(data: bytes) -> tuple[int, int, memoryview]:
    """(width, height, RGB bytes) of what `run` wrote."""
    _, size, _, _ = data.split(b"\n", 3)
    width, height = map(int, size.split())
    return width, height, memoryview(data)[-width * height * 3 :]


def from_ppm(data: bytes) -> Image:
    """The picture that `run` wrote."""
    from PIL import Image as images

    width, height, rgb = read_ppm(data)
    return images.frombytes("RGB", (width, height), bytes(rgb))
