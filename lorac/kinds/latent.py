"""Pixels become the VAE's mean and log-variance. Depends on the pixels and the VAE's weights, never on a caption.

With `flip` they are those of the mirrored picture: a mirrored latent is not the latent of the mirrored picture.
"""

from __future__ import annotations

from collections.abc import Iterable

from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.kinds.image import read_ppm

NAME = "latent"
VERSION = 1
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("latent",)


def run(work: Work) -> Iterable[Made | Failed]:
    """One picture at a time: a picture's latent must not depend on which others are encoded with it."""
    import torch

    from lorac.kinds import weights
    from lorac.sd.device import pick
    from lorac.sd.safetensors import serialise

    device = pick()
    vae = weights.vae(work.open(work.shared["vae"])).to(device.name).requires_grad_(False)
    for done, item in enumerate(work.items):
        width, height, rgb = read_ppm(work.read(item.inputs["pixels"]))
        pixels_HWC = torch.frombuffer(bytearray(rgb), dtype=torch.uint8).view(height, width, 3)
        if work.params.get("flip"):
            pixels_HWC = pixels_HWC.flip(1)
        x_BCHW = pixels_HWC.permute(2, 0, 1)[None].to(device.name, torch.float32) / 127.5 - 1.0
        with torch.inference_mode():
            mean, logvar = vae.encode(x_BCHW)
        if not (torch.isfinite(mean).all() and torch.isfinite(logvar).all()):
            yield Failed(item.index, [Problem(item.name, "the VAE gives NaN for this picture", "use another VAE")])
            continue
        tensors = {"mean": mean[0].float().cpu(), "logvar": logvar[0].float().cpu()}
        yield Made(item.index, {"latent": serialise(tensors, {})})
        work.progress(done + 1, len(work.items), "pictures")
