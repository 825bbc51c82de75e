"""Pixels become the VAE's mean and log-variance. Depends on the pixels and the VAE's weights, never on a caption.

On a card they are computed in float16, and in float32 for a picture that overflows.

With `flip` they are those of the mirrored picture: a mirrored latent is not the latent of the mirrored picture.

A picture's latent must not depend on which others are encoded with it, so each is encoded alone. On a CPU they are
encoded side by side, each on one thread: the bits do not depend on the number of cores, and no core waits for another.
Batches of one bucket are no faster there: 1, 4 and 8 pictures of 128 px take 30, 41 and 39 ms each on one core.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorac.digest import Digest
from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.kinds.image import read_ppm

if TYPE_CHECKING:
    from lorac.sd.encode import Encoder

NAME = "latent"
VERSION = 3
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("latent",)

MOST_PIXELS = 8 * 512 * 512
"""Of pictures that are encoded side by side on a CPU: SD1.x's VAE takes about 0.7 GB for 512 x 512."""


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.kinds import weights
    from lorac.sd.device import pick
    from lorac.sd.encode import Encoder

    device = pick()
    encoder = Encoder(lambda dtype: weights.vae(work.open(work.shared["vae"]), dtype), device)
    one_by_one = (encoded(work, item, encoder) for item in work.items)
    for done, made in enumerate(_side_by_side(work, encoder) if device.name == "cpu" else one_by_one, start=1):
        yield made
        work.progress(done, len(work.items), "pictures")


def _side_by_side(work: Work, encoder: Encoder) -> Iterator[Made | Failed]:
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from lorac.sd.device import cores
    from lorac.train.helper import threads

    pixels = max(_size(work, item.inputs["pixels"]) for item in work.items) // 3
    workers = max(1, min(cores(), MOST_PIXELS // pixels))

    with threads(1), ThreadPoolExecutor(workers, "lorac-latent", torch.set_num_threads, (1,)) as pool:
        yield from pool.map(lambda item: encoded(work, item, encoder), work.items)


def _size(work: Work, digest: Digest) -> int:
    """In bytes."""
    blob = work.open(digest)
    return blob.stat().st_size if isinstance(blob, Path) else len(blob)


def encoded(work: Work, item: Item, encoder: Encoder) -> Made | Failed:
    """One picture."""
    import torch

    from lorac.sd.safetensors import serialise

    width, height, rgb = read_ppm(work.read(item.inputs["pixels"]))
    pixels_HWC = torch.frombuffer(bytearray(rgb), dtype=torch.uint8).view(height, width, 3)
    if work.params.get("flip"):
        pixels_HWC = pixels_HWC.flip(1)
    mean, logvar, again = encoder(pixels_HWC.permute(2, 0, 1)[None].float() / 127.5 - 1.0)
    if not (torch.isfinite(mean).all() and torch.isfinite(logvar).all()):
        return Failed(item.index, [Problem(item.name, "the VAE gives NaN for this picture", "use another VAE")])
    if again:
        work.warn(f"{item.name}: the VAE overflows in float16; this picture is encoded in float32")
    tensors = {"mean": mean[0].cpu(), "logvar": logvar[0].cpu()}
    return Made(item.index, {"latent": serialise(tensors, {})})
