"""SD1.x's text encoder: transformers' `CLIPTextModel`, with the layers that a LoRA attaches to.

Shape suffixes: B batch, K chunks of 77 tokens, L tokens, D channels.
Parameter names are those of SD1.x's files: `text_model.encoder.layers.0.self_attn.q_proj.weight` and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lorac.sd.layers import Linear

POSITIONS = 77

TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of one transformer layer that a LoRA attaches to."""


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; the defaults are CLIP ViT-L/14's, which SD1.x uses."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 49408


class TextEncoder(nn.Module):
    """Token ids to the text states that the U-Net attends to."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _transformer(config)
        for layer in self.text_model.encoder.layers:
            for path in TARGETS:
                layer.set_submodule(path, _adopt(layer.get_submodule(path)))

    def forward(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """Text states after `clip_skip` − 1 layers are left out at the end, through the final LayerNorm.

        `ids`: (B, 77), giving (B, 77, D); or (B, K, 77), giving (B, 75K + 2, D): each chunk is encoded alone, and the
        inner begin and end states are dropped (kohya's `max_token_length` 150 and 225).
        """
        states_BLD: Tensor = self._encode(ids.view(-1, ids.shape[-1]), clip_skip)
        if ids.dim() == 2:
            return states_BLD
        states_BKLD = states_BLD.view(*ids.shape, -1)
        inner_BLD = states_BKLD[:, :, 1:-1].flatten(1, 2)
        return torch.cat([states_BKLD[:, 0, :1], inner_BLD, states_BKLD[:, -1, -1:]], dim=1)

    def _encode(self, ids_BL: Tensor, clip_skip: int) -> Tensor:
        model = self.text_model
        states_BLD: Tensor = model.embeddings(input_ids=ids_BL)
        for layer in model.encoder.layers[: self.config.layers + 1 - clip_skip]:
            states_BLD = layer(states_BLD, None, is_causal=True)
        normed_BLD: Tensor = model.final_layer_norm(states_BLD)
        return normed_BLD


def _transformer(config: TextConfig) -> Any:
    """The bare transformer. transformers 5.6 moved it from `CLIPTextModel.text_model` into `CLIPTextModel` itself."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=POSITIONS,
            hidden_act="quick_gelu",
            attn_implementation="sdpa",
        )
    )
    return getattr(model, "text_model", model)


def _adopt(linear: nn.Linear) -> Linear:
    """The same layer, sharing its weights, with a place for a LoRA."""
    with torch.device("meta"):
        layer = Linear(linear.in_features, linear.out_features)
    layer.load_state_dict(linear.state_dict(), assign=True)
    return layer
