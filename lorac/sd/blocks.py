"""The parts that the U-Net and the VAE share: residual block, resampling, attention.

Shape suffixes: B batch, C channels, H height, W width, L tokens, N heads, D channels of one head.
Names of parameters are diffusers', so that its files load with `strict=True`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lorac.sd.layers import Conv2d, Dense


class Resnet(nn.Module):
    """Two 3×3 convolutions around a residual: `x + conv2(silu(norm2(conv1(silu(norm1(x))) + t)))`.

    `time_channels` 0 means a block without a time input (the VAE's). `eps` is 1e-5 in the U-Net and 1e-6 in the VAE.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float, time_channels: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        if time_channels:
            self.time_emb_proj = Dense(time_channels, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x_BCHW: Tensor, t_BC11: Tensor | None = None) -> Tensor:
        """`t_BC11` is this block's row of `time_emb_proj` outputs; the U-Net computes those of all blocks at once."""
        h: Tensor = self.conv1(F.silu(self.norm1(x_BCHW)))
        h = h if t_BC11 is None else h + t_BC11
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x_BCHW if self.conv_shortcut is None else self.conv_shortcut(x_BCHW))


class Downsample(nn.Module):
    """A 3×3 convolution of stride 2, with one row and column of zeros on every side (the U-Net) or after (the VAE)."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pad_after = padding == 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        halved: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)) if self.pad_after else x_BCHW)
        return halved


class Upsample(nn.Module):
    """Nearest-neighbour enlargement followed by a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
        """`size_HW` is the size to reach: twice the input's, or one less where a skip connection is odd."""
        enlarged: Tensor = self.conv(F.interpolate(x_BCHW, size=size_HW, mode="nearest"))
        return enlarged


def attention(q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
    """`softmax(q kᵀ / √D) v` for every head (Vaswani et al. 2017, eq. 1). (B, L, N, D), as the query."""
    q_BNLD, k_BNLD, v_BNLD = q_BLND.transpose(1, 2), k_BLND.transpose(1, 2), v_BLND.transpose(1, 2)
    return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD).transpose(1, 2)
