"""SD1.x's text encoder: the text half of CLIP (Radford et al. 2021), at any width.

Shape suffixes: B batch, K chunks of 77 tokens, L tokens, D channels, N heads, H channels of one head.
Names of modules and parameters are those of transformers' `CLIPTextModel` and of SD1.x's files:
`text_model.encoder.layers.0.self_attn.q_proj.weight` and so on. transformers itself is the reference of the tests, and
is not imported here: that takes twice as long as importing torch, in every build that trains or draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.sd.layers import Linear

POSITIONS = 77


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; the defaults are CLIP ViT-L/14's, which SD1.x uses."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 49408


class Attention(nn.Module):
    """Multi-head attention of each token to itself and to those before it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = Linear(channels, channels)
        self.v_proj = Linear(channels, channels)
        self.q_proj = Linear(channels, channels)
        self.out_proj = Linear(channels, channels)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BNLH, k_BNLH, v_BNLH = (
            project(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BNLH = F.scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, is_causal=True)
        mixed_BLD: Tensor = self.out_proj(mixed_BNLH.transpose(1, 2).flatten(2))
        return mixed_BLD


class MLP(nn.Module):
    """Two linear layers around CLIP's "quick" approximation of GELU."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, inner)
        self.fc2 = Linear(inner, channels)

    def forward(self, x_BLD: Tensor) -> Tensor:
        h = self.fc1(x_BLD)
        y_BLD: Tensor = self.fc2(h * torch.sigmoid(1.702 * h))
        return y_BLD


class Layer(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.layer_norm1 = nn.LayerNorm(config.width, 1e-5)
        self.mlp = MLP(config.width, config.inner)
        self.layer_norm2 = nn.LayerNorm(config.width, 1e-5)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.layer_norm1(x_BLD))
        y_BLD: Tensor = x_BLD + self.mlp(self.layer_norm2(x_BLD))
        return y_BLD


class Embedding(nn.Module):
    """A row of numbers for each id. torch's own draws its first rows, and on the "meta" device, where models are built
    before their weights are loaded, that imports `torch._dynamo`: two seconds."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, channels))

    def forward(self, ids_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self.weight)


class Embeddings(nn.Module):
    """Ids to the states that the first layer reads: a row for each token, a row for each place."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.position_embedding = Embedding(POSITIONS, config.width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        x_BLD: Tensor = self.token_embedding(ids_BL) + self.position_embedding.weight[: ids_BL.shape[1]]
        return x_BLD


class Encoder(nn.Module):
    """The layers, under the name that they have in files."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Transformer(nn.Module):
    """Embeddings, layers, and a LayerNorm at the end."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width, 1e-5)

    def forward(self, ids_BL: Tensor, clip_skip: int) -> Tensor:
        """(B, L, D), with the last `clip_skip` − 1 layers left out."""
        x_BLD: Tensor = self.embeddings(ids_BL)
        for layer in self.encoder.layers[: len(self.encoder.layers) + 1 - clip_skip]:
            x_BLD = layer(x_BLD)
        normed_BLD: Tensor = self.final_layer_norm(x_BLD)
        return normed_BLD


class TextEncoder(nn.Module):
    """Token ids to the text states that the U-Net attends to."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = Transformer(config)

    def forward(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """Text states after `clip_skip` − 1 layers are left out at the end, through the final LayerNorm.

        `ids`: (B, 77), giving (B, 77, D); or (B, K, 77), giving (B, 75K + 2, D): each chunk is encoded alone, and the
        inner begin and end states are dropped (kohya's `max_token_length` 150 and 225).
        """
        states_BLD: Tensor = self.text_model(ids.view(-1, ids.shape[-1]), clip_skip)
        if ids.dim() == 2:
            return states_BLD
        states_BKLD = states_BLD.view(*ids.shape, -1)
        inner_BLD = states_BKLD[:, :, 1:-1].flatten(1, 2)
        return torch.cat([states_BKLD[:, 0, :1], inner_BLD, states_BKLD[:, -1, -1:]], dim=1)
