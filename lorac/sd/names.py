"""Names of SD1.x's single-file ("LDM") checkpoints beside the names that the models here use (diffusers').

A table holds pairs of module paths. A key is renamed by its longest prefix in the table, so that everything inside a
transformer, whose names agree, needs one entry.
"""

from __future__ import annotations

import re

LEVELS = 4
"""Resolutions of SD1.x's U-Net and VAE."""

Table = dict[str, str]
"""Module path in the single file → module path in the model."""


def rename(key: str, table: Table) -> str | None:
    """The key under the table's other names, or None where no prefix of it is in the table."""
    head = key
    while head:
        if head in table:
            return table[head] + key[len(head) :]
        head = head.rpartition(".")[0]
    return None


def inverse(table: Table) -> Table:
    """The table that maps the model's names to the single file's."""
    return {ours: theirs for theirs, ours in table.items()}


def _resnet(theirs: str, ours: str) -> Table:
    parts = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in parts.items()}


def _unet() -> Table:
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        **_resnet("middle_block.0", "mid_block.resnets.0"),
        **_resnet("middle_block.2", "mid_block.resnets.1"),
    }
    for i in range(LEVELS):
        for j in range(2):
            table |= _resnet(f"input_blocks.{3 * i + j + 1}.0", f"down_blocks.{i}.resnets.{j}")
            table[f"input_blocks.{3 * i + j + 1}.1"] = f"down_blocks.{i}.attentions.{j}"
        table[f"input_blocks.{3 * i + 3}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
        for j in range(3):
            table |= _resnet(f"output_blocks.{3 * i + j}.0", f"up_blocks.{i}.resnets.{j}")
            table[f"output_blocks.{3 * i + j}.1"] = f"up_blocks.{i}.attentions.{j}"
        # The first up block has no transformers, so its enlargement comes one place earlier.
        table[f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    return table


def _vae_resnet(theirs: str, ours: str) -> Table:
    return {theirs: ours, f"{theirs}.nin_shortcut": f"{ours}.conv_shortcut"}


def _vae() -> Table:
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            table[f"{side}.{name}"] = f"{side}.{name}"
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for j in range(2):
            table |= _vae_resnet(f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}")
        parts = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
        for theirs, ours in parts.items():
            table[f"{side}.mid.attn_1.{theirs}"] = f"{side}.mid_block.attentions.0.{ours}"
    for i in range(LEVELS):
        up = LEVELS - 1 - i  # The single file counts the decoder's levels from the highest resolution.
        for j in range(2):
            table |= _vae_resnet(f"encoder.down.{i}.block.{j}", f"encoder.down_blocks.{i}.resnets.{j}")
        for j in range(3):
            table |= _vae_resnet(f"decoder.up.{up}.block.{j}", f"decoder.up_blocks.{i}.resnets.{j}")
        table[f"encoder.down.{i}.downsample.conv"] = f"encoder.down_blocks.{i}.downsamplers.0.conv"
        table[f"decoder.up.{up}.upsample.conv"] = f"decoder.up_blocks.{i}.upsamplers.0.conv"
    return table


UNET: Table = _unet()
VAE: Table = _vae()

TEXT: Table = {"text_model": "text_model"}

TEXT_BARE: Table = {name: f"text_model.{name}" for name in ("embeddings", "encoder", "final_layer_norm")}
"""Some early files (NovelAI's among them) lack the `text_model` level."""

VAE_OLD: Table = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
VAE_OLD_ATTENTION = re.compile(rf"(?<=\.attentions\.0\.)({'|'.join(VAE_OLD)})(?=\.)")
"""diffusers' names in a VAE's attention before 0.17."""
