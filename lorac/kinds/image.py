"""A picture file becomes the pixels that are trained: decoded, upright, on a background, in a bucket.

The output is a binary PPM (`P6`), so the same pixels are the same bytes whatever file they came from: a re-saved picture
stops here. Pictures are never guessed at: what has no one meaning is refused by name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.recipe.buckets import Size, buckets, choose_bucket, crop_offset, no_upscale, scaled_size

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "image"
VERSION = 1
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("pixels", "bucket")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
"""More than any camera or scanner gives; a file that claims more is an attack or a mistake."""
REFUSED = {
    "CMYK": "is a CMYK picture, whose colours depend on a print profile; convert it to RGB in an image editor",
    "YCbCr": "is stored as raw YCbCr; convert it to RGB in an image editor",
    "LAB": "is a CIE Lab picture; convert it to RGB in an image editor",
    "F": "holds floating-point values; convert it to 8-bit RGB in an image editor",
    "I": "has 16 or 32 bits per channel; convert it to 8-bit RGB in an image editor",
    "I;16": "has 16 bits per channel; convert it to 8-bit RGB in an image editor",
    "I;16B": "has 16 bits per channel; convert it to 8-bit RGB in an image editor",
}


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

    def place(self, width: int, height: int) -> tuple[Size, Size]:
        """(size to scale a picture to, bucket to crop it to). Raises Refused for a picture that fills no bucket."""
        if self.enabled and self.no_upscale:
            scaled, bucket = no_upscale(width, height, self.resolution, self.step)
            if not all(bucket):
                raise Refused(f"is only {width}x{height} pixels; enlarge it, or take bucket_no_upscale out")
            return scaled, bucket
        sizes = buckets(self.resolution, self.smallest, self.largest, self.step)
        bucket = choose_bucket(width, height, sizes) if self.enabled else (self.resolution, self.resolution)
        return scaled_size(width, height, bucket), bucket


def run(work: Work) -> Iterable[Made | Failed]:
    bucketing = Bucketing(**work.params["bucketing"])
    for item in work.items:
        try:
            image = fit(decode(work.read(item.inputs["picture"]), work.params["alpha"]), bucketing)
        except Refused as refusal:
            cause, _, remedy = str(refusal).partition("; ")
            yield Failed(item.index, [Problem(item.name, cause, remedy)])
            continue
        header = f"P6\n{image.width} {image.height}\n255\n".encode()
        yield Made(item.index, {"pixels": header + image.tobytes(), "bucket": f"{image.width}x{image.height}".encode()})


def decode(data: bytes, alpha: str | None) -> Image:
    """RGB, upright, transparency put on the colour `alpha` ("white", "black", "#rrggbb"). Raises Refused."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if getattr(image, "n_frames", 1) > 1:
            raise Refused("is animated; save the frame you want as a picture of its own")
        if image.mode in REFUSED:
            raise Refused(REFUSED[image.mode])
        image.load()
        image = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise Refused(f"is not a picture ({' '.join(FORMATS)} are read); remove it from the folder") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(f"has more than {MAX_PIXELS // 10**6} million pixels; scale it down") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Refused(f"is truncated or damaged ({error}); restore it or remove it from the folder") from None
    if "A" not in image.mode and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getextrema()[3][0] == 255:  # type: ignore[index]
        return image.convert("RGB")
    if alpha is None:
        raise Refused('has transparent parts and the recipe does not say what is behind them; add alpha = "white" to its [[source]]')
    behind = Image.new("RGBA", image.size, alpha)
    return Image.alpha_composite(behind, image).convert("RGB")


def fit(image: Image, bucketing: Bucketing) -> Image:
    """Scale to cover the picture's bucket, then crop around the centre, as kohya does.

    Shrinking averages over areas (kohya: cv2.INTER_AREA), enlarging is Lanczos (kohya since 2025).
    """
    from PIL import Image as images

    scaled, bucket = bucketing.place(image.width, image.height)
    if scaled != image.size:
        shrinks = scaled[0] < image.width
        image = image.resize(scaled, images.Resampling.BOX if shrinks else images.Resampling.LANCZOS)
    left, top = crop_offset(scaled, bucket)
    return image.crop((left, top, left + bucket[0], top + bucket[1]))


def read_ppm(data: bytes) -> tuple[int, int, memoryview]:
    """(width, height, RGB bytes) of what `run` wrote."""
    _, size, _, _ = data.split(b"\n", 3)
    width, height = map(int, size.split())
    return width, height, memoryview(data)[-width * height * 3 :]

