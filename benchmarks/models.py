"""The random models that the benchmarks train, at SD1.5's size and at the embedded base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorac.mini.train import TEXT, UNET
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.lora_names import PARTS, Part
from lorac.sd.unet import UNet, UNetConfig
from lorac.sd.vae import VAE, VAEConfig
from lorac.train.slices import Sample, Step
from tests import fullsize

RATE = 1e-4
CAPTION = list(range(320, 360))


@dataclass(frozen=True)
class Size:
    """A base and how it is trained: `trained` parts, rank = alpha, clip skip, longest caption in tokens."""

    name: str
    unet: UNetConfig
    text: TextConfig
    px: int
    trained: tuple[Part, ...]
    modules: int
    clip_skip: int = 1
    tokens: int = 75
    rank: int = 128


SIZES = {
    "full": Size("full", UNetConfig(), TextConfig(), 512, ("unet",), 192),
    "mini": Size("mini", UNET, TEXT, 128, PARTS, 264, clip_skip=2, tokens=150),
}


@dataclass(frozen=True)
class Models:
    """A base in evaluation mode, without a VAE: latents are given."""

    size: Size
    unet: UNet
    text: TextEncoder

    def again(self) -> Models:
        """Modules of their own over the same weights, for another trainer in the same process."""
        base = fullsize.Base(self.unet, _no_vae(), self.text).to(self.unet.conv_in.weight.dtype)
        return Models(self.size, base.unet, base.text)

    def diffusers(self) -> tuple[Any, Any]:
        """diffusers' U-Net and transformers' text encoder over the same weights."""
        unet, _, text = fullsize.diffusers_models(fullsize.Base(self.unet, _no_vae(), self.text))
        return unet, text


def draw(size: Size, device: str = "cpu") -> Models:
    """Random weights; on CUDA in float16, as both sides train there."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    with torch.device("meta"):
        unet, text = UNet(size.unet), TextEncoder(size.text)
    for model in (unet, text):
        model.to_empty(device=device).to(dtype)
        fill(model)
        model.eval().requires_grad_(False)
    return Models(size, unet, text)


def fill(model: nn.Module) -> None:
    """Weights that keep activations near 1; uniform ones, as a thousand million normal numbers take half a minute."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.data.uniform_(-bound, bound)


def _no_vae() -> VAE:
    with torch.device("meta"):
        vae = VAE(VAEConfig(width=8, groups=4))
    return vae.to_empty(device="cpu").eval()


def schedule_step(size: Size, index: int, batch: int) -> Step:
    """A step of `batch` samples; every step has other noise."""
    samples = [Sample(i, 37 * (index + i) % 1000, index * batch + i, 1.0, CAPTION) for i in range(batch)]
    return Step(index, RATE, RATE, [samples])
