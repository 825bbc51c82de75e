"""Stable Diffusion 1.x's U-Net (Rombach et al. 2022), at any width.

Shape suffixes: B batch, C channels, H height, W width, L tokens, N heads, D channels of one head.
Parameter names and shapes are those of diffusers' `UNet2DConditionModel`; `checkpoint.py` maps the single-file names.
At batch 1 a CPU or a small width is bound by the number of operations, so `forward` avoids every one it can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.kernels.geglu import geglu
from lorac.kernels.group_norm import group_norm
from lorac.sd.blocks import Downsample, Resnet, Upsample, attention
from lorac.sd.layers import Dense, Linear, joined


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net; the defaults are SD1.x's. `heads` is the number of attention heads at every level."""

    width: int = 320
    context: int = 768
    heads: int = 8
    groups: int = 32
    latent: int = 4
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    resnets: int = 2

    @property
    def time(self) -> int:
        """Channels of the time embedding."""
        return 4 * self.width


class Attention(nn.Module):
    """Multi-head attention of tokens to a context: to themselves (`attn1`) or to the caption (`attn2`)."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context, channels, bias=False)
        self.to_v = Linear(context, channels, bias=False)
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x_BLC: Tensor, ctx_BLC: Context) -> Tensor:
        q_BLND = self.to_q(x_BLC).unflatten(-1, (self.heads, -1))
        k_BLND, v_BLND = ctx_BLC.keys_values(self) if isinstance(ctx_BLC, Caption) else self.keys_values(ctx_BLC)
        mixed_BLC: Tensor = self.to_out[0](attention(q_BLND, k_BLND, v_BLND).flatten(2))
        return mixed_BLC

    def keys_values(self, ctx_BLC: Tensor) -> tuple[Tensor, Tensor]:
        k_BLND, v_BLND = (project(ctx_BLC).unflatten(-1, (self.heads, -1)) for project in (self.to_k, self.to_v))
        return k_BLND, v_BLND


class Caption:
    """Text states that the U-Net sees at several timesteps: the keys and values of each attention are made once.

    They hold for the LoRA, and its strength, with which they were first used.
    """

    def __init__(self, states_BLC: Tensor) -> None:
        self.states_BLC = states_BLC
        self._made: dict[Attention, tuple[Tensor, Tensor]] = {}

    def keys_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        if attention not in self._made:
            self._made[attention] = attention.keys_values(self.states_BLC)
        return self._made[attention]


Context: TypeAlias = "Tensor | Caption"


class GEGLU(nn.Module):
    """`a · gelu(b)` of one projection to (a, b) (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = Linear(inputs, 2 * outputs)

    def forward(self, x_BLC: Tensor) -> Tensor:
        y_BLC: Tensor = geglu(self.proj(x_BLC))
        return y_BLC


class FeedForward(nn.Module):
    """GEGLU to four times the channels, and back. `net.1` is a dropout in the original; it holds no parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, x_BLC: Tensor) -> Tensor:
        y_BLC: Tensor = self.net(x_BLC)
        return y_BLC


class TransformerBlock(nn.Module):
    """Self-attention, attention to the caption, feed-forward; each behind a LayerNorm and added to its input."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, 1e-5)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels, 1e-5)
        self.attn2 = Attention(channels, context, heads)
        self.norm3 = nn.LayerNorm(channels, 1e-5)
        self.ff = FeedForward(channels)

    def forward(self, x_BLC: Tensor, ctx_BLC: Context) -> Tensor:
        own_BLC: Tensor = self.norm1(x_BLC)
        x_BLC = x_BLC + self.attn1(own_BLC, own_BLC)
        x_BLC = x_BLC + self.attn2(self.norm2(x_BLC), ctx_BLC)
        y_BLC: Tensor = x_BLC + self.ff(self.norm3(x_BLC))
        return y_BLC


class Transformer(nn.Module):
    """One transformer block over the pixels of a feature map. `proj_in` and `proj_out` are 1×1 convolutions, so they
    run on the tokens as matrix products."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, 1e-6)
        self.proj_in = Linear(channels, channels, pointwise_conv=True)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, config.context, config.heads)])
        self.proj_out = Linear(channels, channels, pointwise_conv=True)

    def forward(self, x_BCHW: Tensor, ctx_BLC: Context) -> Tensor:
        tokens_BLC: Tensor = self.proj_in(self.norm(x_BCHW).flatten(2).transpose(1, 2))
        tokens_BLC = self.proj_out(self.transformer_blocks[0](tokens_BLC, ctx_BLC))
        return x_BCHW + tokens_BLC.transpose(1, 2).view(x_BCHW.shape)


class DownBlock(nn.Module):
    """Resnets, each followed by a transformer where `attend`, then a halving unless `last`."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, attend: bool, last: bool) -> None:
        super().__init__()
        ins = [inputs] + [outputs] * (config.resnets - 1)
        self.resnets = nn.ModuleList(Resnet(i, outputs, config.groups, 1e-5, config.time) for i in ins)
        self.attentions = nn.ModuleList(Transformer(outputs, config) for _ in ins if attend)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(outputs, padding=1)])

    def forward(self, x_BCHW: Tensor, times: Iterator[Tensor], ctx_BLC: Context) -> list[Tensor]:
        """All intermediate feature maps, in order: the up path takes them as skip connections."""
        maps = []
        for resnet, transformer in zip_longest(self.resnets, self.attentions):
            x_BCHW = resnet(x_BCHW, next(times))
            if transformer is not None:
                x_BCHW = transformer(x_BCHW, ctx_BLC)
            maps.append(x_BCHW)
        for downsample in self.downsamplers:
            maps.append(downsample(x_BCHW))
        return maps


class MidBlock(nn.Module):
    """Resnet, transformer, resnet at the lowest resolution."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels, channels, config.groups, 1e-5, config.time) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(channels, config)])

    def forward(self, x_BCHW: Tensor, times: Iterator[Tensor], ctx_BLC: Context) -> Tensor:
        x_BCHW = self.attentions[0](self.resnets[0](x_BCHW, next(times)), ctx_BLC)
        y_BCHW: Tensor = self.resnets[1](x_BCHW, next(times))
        return y_BCHW


class UpBlock(nn.Module):
    """Resnets over (x, skip) pairs, each followed by a transformer where `attend`, then an enlargement unless `last`.

    `skips` are the channels of the skip connections in the order in which they are taken.
    """

    def __init__(
        self, inputs: int, skips: list[int], outputs: int, config: UNetConfig, attend: bool, last: bool
    ) -> None:
        super().__init__()
        ins = [inputs] + [outputs] * (len(skips) - 1)
        self.resnets = nn.ModuleList(
            Resnet(i + skip, outputs, config.groups, 1e-5, config.time) for i, skip in zip(ins, skips, strict=True)
        )
        self.attentions = nn.ModuleList(Transformer(outputs, config) for _ in ins if attend)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(outputs)])

    def forward(self, x_BCHW: Tensor, skips: list[Tensor], times: Iterator[Tensor], ctx_BLC: Context) -> Tensor:
        """Pops its skip connections off the end of `skips`; what it enlarges gets the size of the next one."""
        for resnet, transformer in zip_longest(self.resnets, self.attentions):
            x_BCHW = resnet(torch.cat([x_BCHW, skips.pop()], dim=1), next(times))
            if transformer is not None:
                x_BCHW = transformer(x_BCHW, ctx_BLC)
        for upsample in self.upsamplers:
            x_BCHW = upsample(x_BCHW, skips[-1].shape[-2:])
        return x_BCHW


class TimeEmbedding(nn.Module):
    """Timestep to `4 · width` channels: sines and cosines (Vaswani et al. 2017, cosines first), then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = width // 2
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t_B: Tensor) -> Tensor:
        exponents = torch.arange(self.waves, dtype=torch.float32, device=t_B.device) * (-math.log(10000) / self.waves)
        angles_BC = t_B.float()[:, None] * exponents.exp()
        waves_BC = torch.cat([angles_BC.cos(), angles_BC.sin()], dim=1).to(self.linear_1.weight.dtype)
        embedding_BC: Tensor = self.linear_2(F.silu(self.linear_1(waves_BC)))
        return embedding_BC


class UNet(nn.Module):
    """`eps = unet(x, t, ctx)`: the noise in a latent, given the timestep and the caption."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(config.width)
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for i, width in enumerate(widths):
            self.down_blocks.append(DownBlock(skips[-1], width, config, attend=i < last, last=i == last))
            skips += [width] * (config.resnets + (i < last))
        self.mid_block = MidBlock(widths[-1], config)
        self.up_blocks = nn.ModuleList()
        channels = widths[-1]
        for i, width in enumerate(reversed(widths)):
            taken = [skips.pop() for _ in range(config.resnets + 1)]
            self.up_blocks.append(UpBlock(channels, taken, width, config, attend=i > 0, last=i == last))
            channels = width
        self.conv_norm_out = nn.GroupNorm(config.groups, channels, 1e-5)
        self.conv_out = nn.Conv2d(channels, config.latent, 3, padding=1)
        self._times: tuple[Tensor, Tensor] | None = None

    def join_time_projections(self) -> None:
        """Join the weights of all time projections once, which each pass does otherwise. From then on they must stay
        where they are, and as they are."""
        projections = self._projections()
        self._times = joined(projections), torch.cat([p.bias.detach() for p in projections])

    def forward(self, x_BCHW: Tensor, t_B: Tensor, ctx_BLC: Context) -> Tensor:
        """Noise estimate, shaped as `x_BCHW` (scaled latents of any size). `t_B` in 0..999; `ctx_BLC` text states."""
        times = self._time_projections(t_B)
        x_BCHW = self.conv_in(x_BCHW)
        skips = [x_BCHW]
        for down in self.down_blocks:
            skips += down(skips[-1], times, ctx_BLC)
        x_BCHW = self.mid_block(skips[-1], times, ctx_BLC)
        for up in self.up_blocks:
            x_BCHW = up(x_BCHW, skips, times, ctx_BLC)
        norm = self.conv_norm_out
        normed_BCHW = group_norm(x_BCHW, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=True)
        eps_BCHW: Tensor = self.conv_out(normed_BCHW)
        return eps_BCHW

    def _time_projections(self, t_B: Tensor) -> Iterator[Tensor]:
        """What each resnet adds to its channels, in the order in which they run, from one matrix product for all."""
        projections = self._projections()
        time_BC = F.silu(self.time_embedding(t_B))
        if any(p.lora is not None for p in projections):
            return iter([p(time_BC)[:, :, None, None] for p in projections])
        if self._times is None:
            weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
        else:
            weight, bias = self._times
        rows_BC = F.linear(time_BC, weight, bias)
        return iter(torch.split(rows_BC[:, :, None, None], [p.out_features for p in projections], dim=1))

    def _projections(self) -> list[Dense]:
        return [
            resnet.time_emb_proj
            for block in (*self.down_blocks, self.mid_block, *self.up_blocks)
            for resnet in block.resnets
        ]
