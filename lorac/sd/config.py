"""What the shapes of a checkpoint's tensors do not tell, from its metadata or its folder. Needs no torch.

A single file says it in its metadata: `lorac.config` (files that lorac wrote) or `modelspec.prediction_type`; or by
empty tensors named `v_pred` and `ztsnr`, as ComfyUI reads them. A diffusers folder says it in its config.json files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

METADATA_KEY = "lorac.config"
PREDICTION_KEY = "modelspec.prediction_type"
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"

FACTOR = 8
"""Pixels per latent pixel, in each direction."""


@dataclass(frozen=True)
class UNetHeads:
    """What the U-Net's shapes do not tell."""

    heads: int = 8
    groups: int = 32


@dataclass(frozen=True)
class VAEGroups:
    """What the VAE's shapes do not tell."""

    groups: int = 32


@dataclass(frozen=True)
class TextHeads:
    """What the text encoder's shapes do not tell. 0 heads mean one for each 64 channels, as in every CLIP."""

    heads: int = 0


@dataclass(frozen=True)
class BaseConfig:
    """What a checkpoint's shapes do not tell; the defaults are SD1.x's. `resolution` in pixels.

    v_parameterization: the U-Net predicts v and not the noise. zero_terminal_snr: its last timestep is pure noise.
    """

    unet: UNetHeads = field(default_factory=UNetHeads)
    vae: VAEGroups = field(default_factory=VAEGroups)
    text: TextHeads = field(default_factory=TextHeads)
    resolution: int = 512
    clip_skip: int = 1
    v_parameterization: bool = False
    zero_terminal_snr: bool = False

    def to_json(self) -> str:
        """The text under `lorac.config` in a file's metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> BaseConfig:
        """The reverse of `to_json`; absent fields keep SD1.x's values, unknown ones raise TypeError."""
        data: dict[str, Any] = json.loads(text)
        sections = {"unet": UNetHeads, "vae": VAEGroups, "text": TextHeads}
        nested = {key: kind(**data.pop(key)) for key, kind in sections.items() if key in data}
        return replace(BaseConfig(**data), **nested)


def of_file(metadata: Mapping[str, str], keys: Collection[str]) -> BaseConfig:
    """The configuration that a single file has with it. Raises ValueError, TypeError or AttributeError for nonsense."""
    text = metadata.get(METADATA_KEY)
    config = BaseConfig.from_json(text) if text else BaseConfig()
    says_v = V_MARK in keys or metadata.get(PREDICTION_KEY, "").startswith("v")
    return replace(
        config,
        v_parameterization=config.v_parameterization or says_v,
        zero_terminal_snr=config.zero_terminal_snr or ZERO_SNR_MARK in keys,
    )


def of_folder(configs: Mapping[str, Mapping[str, Any]]) -> BaseConfig:
    """The configuration of a diffusers folder, from its config.json files by model: unet, vae, text, scheduler.

    `attention_head_dim` is diffusers' old name for the number of the U-Net's heads.
    """
    unet, vae, text, scheduler = (configs.get(name, {}) for name in ("unet", "vae", "text", "scheduler"))
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim", 8)
    return BaseConfig(
        UNetHeads(int(heads), int(unet.get("norm_num_groups", 32))),
        VAEGroups(int(vae.get("norm_num_groups", 32))),
        TextHeads(int(text.get("num_attention_heads", 0))),
        resolution=FACTOR * int(unet.get("sample_size") or 64),
        v_parameterization=scheduler.get("prediction_type") == "v_prediction",
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
    )
