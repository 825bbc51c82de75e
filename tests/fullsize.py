"""Random models of Stable Diffusion 1.5's sizes, ours and diffusers' with the same memory, and the files they come in.

Nothing here is downloaded or committed: 1.07 billion parameters are drawn when a slow test or a benchmark wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorac.sd import names
from lorac.sd.checkpoint import save_ldm
from lorac.sd.clip import POSITIONS, TextConfig, TextEncoder
from lorac.sd.config import BaseConfig, TextHeads, UNetHeads, VAEGroups
from lorac.sd.families import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from lorac.sd.unet import UNet, UNetConfig
from lorac.sd.vae import VAE, VAEConfig
from tests.small import randomise

State = dict[str, Tensor]

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Base:
    """The three models of one base, float32 and in evaluation mode."""

    unet: UNet
    vae: VAE
    text: TextEncoder

    def to(self, dtype: torch.dtype) -> Base:
        """The same base in another precision, in memory of its own."""
        with torch.device("meta"):
            models = (UNet(self.unet.config), VAE(self.vae.config), TextEncoder(self.text.config))
        for ours, model in zip((self.unet, self.vae, self.text), models, strict=True):
            _assign(model, {key: tensor.to(dtype) for key, tensor in ours.state_dict().items()})
            model.eval().requires_grad_(False)
        return Base(*models)

    @property
    def config(self) -> BaseConfig:
        """What the shapes do not tell."""
        unet, vae, text = UNetHeads(self.unet.config.heads, self.unet.config.groups), self.vae.config.groups, self.text
        return BaseConfig(unet, VAEGroups(vae), TextHeads(text.config.heads))


def draw(
    seed: int = 0,
    unet: UNetConfig | None = None,
    vae: VAEConfig | None = None,
    text: TextConfig | None = None,
) -> Base:
    """Models of the given sizes, by default SD1.5's."""
    with torch.device("meta"):
        models = (UNet(unet or UNetConfig()), VAE(vae or VAEConfig()), TextEncoder(text or TextConfig()))
    for number, model in enumerate(models):
        model.to_empty(device="cpu")
        randomise(model, seed + number)
        model.eval().requires_grad_(False)
    return Base(*models)


def _number_positions(transformer: Any) -> None:
    transformer.embeddings.position_ids = torch.arange(POSITIONS).expand((1, -1))


def diffusers_models(base: Base) -> tuple[Any, Any, Any]:
    """diffusers' U-Net and VAE and transformers' text encoder over the same tensors."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, vae, text = base.unet.config, base.vae.config, base.text.config
    with torch.device("meta"):
        theirs = (
            UNet2DConditionModel(
                sample_size=64,
                block_out_channels=tuple(unet.width * m for m in unet.multipliers),
                cross_attention_dim=unet.context,
                attention_head_dim=unet.heads,  # diffusers' old name for the number of heads
                norm_num_groups=unet.groups,
            ),
            AutoencoderKL(
                block_out_channels=tuple(vae.widths),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=vae.resnets,
                latent_channels=vae.latent,
                norm_num_groups=vae.groups,
                sample_size=512,
            ),
            CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=text.vocabulary,
                    hidden_size=text.width,
                    intermediate_size=text.inner,
                    num_hidden_layers=text.layers,
                    num_attention_heads=text.heads,
                    max_position_embeddings=POSITIONS,
                    hidden_act="quick_gelu",
                )
            ),
        )
    transformer = getattr(theirs[2], "text_model", theirs[2])
    _assign(theirs[0], base.unet.state_dict())
    _assign(theirs[1], base.vae.state_dict())
    _assign(transformer, {k.removeprefix("text_model."): v for k, v in base.text.state_dict().items()})
    _number_positions(transformer)
    for model in theirs:
        model.eval().requires_grad_(False)
    return theirs


def _assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    model.load_state_dict(state, assign=True)


def pipeline(base: Base, **more: Any) -> Any:
    """diffusers' pipeline over the same tensors, without a tokenizer, whose files are not needed here."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    unet, vae, text = diffusers_models(base)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER, **more),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_safetensors(base: Base, path: Path, dtype: torch.dtype) -> None:
    """A single-file checkpoint, as web UIs use."""
    save_ldm(path, base.unet, base.vae, base.text, base.config, dtype)


def ldm_state(base: Base, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same tensors by name, in memory."""
    state: dict[str, Tensor] = {}
    for model, prefix, table in (
        (base.unet, UNET_PREFIX, names.UNET),
        (base.vae, VAE_PREFIX, names.VAE),
        (base.text, TEXT_PREFIX, names.TEXT),
    ):
        theirs = names.inverse(table)
        for key, tensor in model.state_dict().items():
            square = "mid_block.attentions.0.to_" in key and key.endswith("weight") and tensor.dim() == 2
            state[f"{prefix}{names.rename(key, theirs)}"] = (tensor[:, :, None, None] if square else tensor).to(dtype)
    return state


def save_ckpt(base: Base, path: Path, dtype: torch.dtype) -> None:
    """A checkpoint as training leaves it: a pickle with `state_dict`, a second U-Net of averages, and tables."""
    state = ldm_state(base, dtype)
    ema = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": tensor.clone()
        for key, tensor in state.items()
        if key.startswith(UNET_PREFIX)
    }
    text_positions = {f"{TEXT_PREFIX}text_model.embeddings.position_ids": torch.arange(POSITIONS)[None]}
    tables = {"betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())}
    torch.save({"epoch": 3, "global_step": 470000, "state_dict": {**tables, **ema, **state, **text_positions}}, path)


def save_nai(base: Base, path: Path, dtype: torch.dtype) -> None:
    """A bare pickle of tensors whose text encoder lacks the `text_model` level, as NovelAI's were."""
    level = f"{TEXT_PREFIX}text_model."
    torch.save({key.replace(level, TEXT_PREFIX): tensor for key, tensor in ldm_state(base, dtype).items()}, path)


def save_configs(base: Base, folder: Path) -> None:
    """The config.json files of a diffusers folder, without weights."""
    pipe = pipeline(base)
    pipe.save_config(folder)
    pipe.unet.save_config(folder / "unet")
    pipe.vae.save_config(folder / "vae")
    pipe.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipe.scheduler.save_config(folder / "scheduler")
