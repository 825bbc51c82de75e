"""A random base of the real architecture, small enough for tests, ours and diffusers' with the same weights."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import nn

from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.unet import UNet, UNetConfig

UNET = UNetConfig(width=32, context=64, heads=4, groups=8)
TEXT = TextConfig(width=64, layers=12, heads=4, inner=128, vocabulary=49408)


def randomise(model: nn.Module, seed: int) -> None:
    """Weights that keep activations near 1, biases that are not zero, norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        scale = 1.0 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if name.endswith("embedding.weight"):
            parameter.data.copy_(0.3 * noise)
        elif parameter.dim() == 1:
            parameter.data.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        else:
            parameter.data.copy_(scale * noise)


def base(seed: int = 0, unet_sizes: UNetConfig = UNET, text_sizes: TextConfig = TEXT) -> tuple[UNet, TextEncoder]:
    """A U-Net (8.8 M parameters) and a text encoder in evaluation mode."""
    return copy.deepcopy(_drawn(seed, unet_sizes, text_sizes))


@cache
def _drawn(seed: int, unet_sizes: UNetConfig, text_sizes: TextConfig) -> tuple[UNet, TextEncoder]:
    """A copy takes half as long. Whether it was there before changes no number that a test draws later."""
    with torch.random.fork_rng():
        unet, text_encoder = UNet(unet_sizes), TextEncoder(text_sizes)
    randomise(unet, seed)
    randomise(text_encoder, seed + 1)
    return unet.eval(), text_encoder.eval()


def diffusers_unet(unet: UNet) -> Any:
    """diffusers' U-Net with the weights of ours."""
    from diffusers import UNet2DConditionModel

    sizes = unet.config
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=tuple(sizes.width * m for m in sizes.multipliers),
        cross_attention_dim=sizes.context,
        attention_head_dim=sizes.heads,  # diffusers' old name for the number of heads
        norm_num_groups=sizes.groups,
    )
    model.load_state_dict(unet.state_dict())
    return model.eval()


def transformers_text_model(text_encoder: TextEncoder) -> Any:
    """transformers' CLIP text model with the weights of ours."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = text_encoder.config
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            intermediate_size=sizes.inner,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            hidden_act="quick_gelu",
        )
    )
    state = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    target = getattr(model, "text_model", model)
    target.load_state_dict(state, strict=False)
    return model.eval()
