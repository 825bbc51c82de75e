"""Pictures of one prompt: the LoRA off and at each strength, from the same noise, side by side."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.rng import seed64

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lorac.sd.clip import TextEncoder
    from lorac.sd.lora import LoRANetwork
    from lorac.sd.unet import UNet
    from lorac.sd.vae import VAE

NAME = "sample"
VERSION = 3
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("row", "preview")


def run(work: Work) -> Iterable[Made | Failed]:
    """`row` is a PNG of all strengths from left to right, `preview` one of them."""
    studio = Studio(work)
    for done, item in enumerate(work.items):
        pictures = [studio.draw(item.params, strength) for strength in work.params["strengths"]]
        yield Made(item.index, {"row": png(side_by_side(pictures)), "preview": png(pictures[work.params["preview"]])})
        work.progress(done + 1, len(work.items), "prompts")


class Studio:
    """The base with the LoRA on it, ready to draw."""

    def __init__(self, work: Work) -> None:
        from lorac.kinds import weights
        from lorac.sd.device import pick
        from lorac.sd.lora import LoRANetwork
        from lorac.sd.safetensors import tensors_of

        self.params = {**work.params, **work.params["sample"]}
        self.device = pick()
        device, dtype = self.device.name, self.device.dtype
        self.unet: UNet = weights.unet(work.open(work.shared["unet"]), dtype).to(device)
        self.text: TextEncoder = weights.text_encoder(work.open(work.shared["text"]), dtype).to(device)
        self.vae: VAE = weights.vae(work.open(work.shared["vae"])).to(device)
        tensors = tensors_of(work.open(work.shared["lora"]))
        self.lora: LoRANetwork = LoRANetwork.of_state(self.unet, self.text, tensors)

    def draw(self, prompt: Mapping[str, Any], strength: float) -> Image:
        """One picture; the noise depends on the recipe's sample seed alone."""
        import torch

        from lorac.sd.sampler import sample
        from lorac.sd.vae import FACTOR, SCALE

        params = self.params
        shape = (1, 4, params["height"] // FACTOR, params["width"] // FACTOR)
        with torch.no_grad():
            self.lora.set_strength(strength)
            states_BLD, negative_BLD = self._states(prompt["prompt"], prompt["negative"])
            latents_BCHW = sample(
                self.unet,
                states_BLD,
                negative_BLD,
                self._noise(shape, 0),
                params["steps"],
                params["cfg_scale"],
                params["sampler"],
                lambda step: self._noise(shape, step + 1),
                **params["prediction"],
            )
            x_BCHW = self.vae.decode(latents_BCHW.float() / SCALE)
        return to_image(x_BCHW[0])

    def _states(self, *texts: str) -> list[Tensor]:
        """Of each text (1, L, D), in as many windows of 75 tokens as the longest needs."""
        import torch

        from lorac.sd.tokenizer import Tokenizer, chunk

        ids = [Tokenizer().encode(text) for text in texts]
        windows = max(1, *(-(-len(row) // 75) for row in ids))
        rows_TKL = torch.tensor([chunk(row, 75 * windows) for row in ids], device=self.device.name)
        return [self.text(rows_KL[None], self.params["clip_skip"]) for rows_KL in rows_TKL]

    def _noise(self, shape: tuple[int, ...], number: int) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(seed64(self.params["seed"], "sample noise", number) >> 1)
        return torch.randn(shape, generator=generator).to(self.device.name, self.device.dtype)


def to_image(x_CHW: Tensor) -> Image:
    """A picture from values in [-1, 1], shape (3, H, W)."""
    from PIL import Image as images

    values_HWC = ((x_CHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().contiguous()
    height, width = values_HWC.shape[:2]
    return images.frombytes("RGB", (width, height), values_HWC.numpy().tobytes())


def side_by_side(pictures: list[Image]) -> Image:
    from PIL import Image as images

    strip = images.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


def png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
