"""Stable Diffusion 1.x's autoencoder (KL-regularised, factor 8), at any width.

Shape suffixes: B batch, C channels, H height, W width, L pixels as tokens.
Parameter names and shapes are those of diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lorac.sd.blocks import Downsample, Resnet, Upsample, attention

SCALE = 0.18215
"""Latents are multiplied by this before the U-Net sees them, which gives them unit variance (Rombach et al. 2022)."""

FACTOR = 8
"""Pixels per latent pixel, in each direction."""


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are SD1.x's."""

    width: int = 128
    groups: int = 32
    latent: int = 4
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    resnets: int = 2

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution, highest resolution first."""
        return [self.width * m for m in self.multipliers]


class PixelAttention(nn.Module):
    """Single-head self-attention between all pixels of a feature map, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, 1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        tokens_BLC: Tensor = self.group_norm(x_BCHW).flatten(2).transpose(1, 2)
        q, k, v = (project(tokens_BLC).unsqueeze(2) for project in (self.to_q, self.to_k, self.to_v))
        tokens_BLC = self.to_out[0](attention(q, k, v).squeeze(2))
        return x_BCHW + tokens_BLC.transpose(1, 2).view(x_BCHW.shape)


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups, 1e-6) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x_BCHW)))
        return y_BCHW


class Block(nn.Module):
    """`count` resnets at one resolution, then a halving (`down`), an enlargement (`up`) or neither."""

    def __init__(
        self, inputs: int, outputs: int, groups: int, count: int, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        ins = [inputs] + [outputs] * (count - 1)
        self.resnets = nn.ModuleList(Resnet(i, outputs, groups, 1e-6) for i in ins)
        self.downsamplers = nn.ModuleList([Downsample(outputs, padding=0)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(outputs)] if up else [])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for resnet in self.resnets:
            x_BCHW = resnet(x_BCHW)
        for downsample in self.downsamplers:
            x_BCHW = downsample(x_BCHW)
        for upsample in self.upsamplers:
            x_BCHW = upsample(x_BCHW, (2 * x_BCHW.shape[2], 2 * x_BCHW.shape[3]))
        return x_BCHW


class Encoder(nn.Module):
    """(B, 3, 8H, 8W) pixels to (B, 2·latent, H, W): mean and log-variance before `quant_conv`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            Block(widths[max(i - 1, 0)], width, config.groups, config.resnets, down=i < last)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], config.groups)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for block in self.down_blocks:
            x_BCHW = block(x_BCHW)
        moments: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x_BCHW))))
        return moments


class Decoder(nn.Module):
    """(B, latent, H, W) to (B, 3, 8H, 8W) pixels, one resnet more per resolution than the encoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = nn.Conv2d(config.latent, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], config.groups)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            Block(widths[max(i - 1, 0)], width, config.groups, config.resnets + 1, up=i < last)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x_BCHW: Tensor = self.mid_block(self.conv_in(z_BCHW))
        for block in self.up_blocks:
            x_BCHW = block(x_BCHW)
        pixels_BCHW: Tensor = self.conv_out(F.silu(self.conv_norm_out(x_BCHW)))
        return pixels_BCHW


class VAE(nn.Module):
    """Pictures to latents and back. Latents here are *not* multiplied by `SCALE`; the callers do that."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent, 2 * config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.latent, 1)

    def encode(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1], sides multiples of 8, to (mean, log-variance) of the latent, each (B, latent, H/8, W/8).
        The log-variance is clamped to [-30, 20] as in the original."""
        mean: Tensor
        logvar: Tensor
        mean, logvar = self.quant_conv(self.encoder(x_BCHW)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Latents to pixels, about [-1, 1] but not clamped."""
        x_BCHW: Tensor = self.decoder(self.post_quant_conv(z_BCHW))
        return x_BCHW
