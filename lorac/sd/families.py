"""What a model file is, from the names and shapes of its tensors: an SD1.x checkpoint, or what else. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lorac.errors import Problem

Shapes = Mapping[str, Sequence[int]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

_NO_BASE = ", not a base"
NEEDED = "lorac needs an SD1.x checkpoint as the base"
OR_VAE = 'or give a VAE: train.vae = "vae-ft-mse-840000-ema-pruned.safetensors"'

_FAMILIES = {
    "a LyCORIS file, not a base": r"^lycoris_|\.(hada_w[12]|lokr_w[12]|oft_blocks|oft_diag)",
    "a LoRA, not a base": r"^lora_(unet|te\d?|prior)_|[._]lora[._](up|down|A|B|linear_layer)\.",
    "a ControlNet, not a base": r"^control_model\.|^controlnet_|input_hint_block\.",
    "an SDXL checkpoint": r"^conditioner\.embedders\.|^(model\.diffusion_model\.)?label_emb\.|^add_embedding\.",
    "an SD2.x checkpoint": r"^cond_stage_model\.model\.",
    "an SD3 checkpoint": r"^(model\.diffusion_model\.)?joint_blocks\.",
    "a Flux checkpoint": r"^(model\.diffusion_model\.)?double_blocks\.",
    "an embedding (textual inversion), not a base": r"^(emb_params|string_to_param|clip_[lg])\b",
}
"""What a file is -> what a key of it looks like. The first that fits counts: LyCORIS files have LoRA's names, too."""
_MARKS = {family: re.compile(pattern, re.MULTILINE) for family, pattern in _FAMILIES.items()}

_BY_CHANNELS = {9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint", 5: "a depth-to-image checkpoint"}
_BY_CONTEXT = {1024: "an SD2.x checkpoint", 1280: "an SDXL refiner checkpoint", 2048: "an SDXL checkpoint"}
LATENT = 4

_VAE_KEY = re.compile(r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up|mid)")
_TEXT_KEY = re.compile(r"^(cond_stage_model\.transformer\.)?text_model\.")
_DIFFUSERS_UNET_KEY = "down_blocks.0.resnets.0.conv1.weight"
_EMBEDDING_WIDTHS = {768, 1024, 1280}


def foreign(shapes: Shapes) -> str | None:
    """What a single file is if it is surely no SD1.x checkpoint: "an SDXL checkpoint"."""
    text = "\n".join(shapes)
    for family, mark in _MARKS.items():
        if mark.search(text):
            return family
    channels = _axis(shapes, f"{UNET_PREFIX}input_blocks.0.0.weight", 1)
    context = _axis(shapes, f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1)
    return by_sizes(channels, context) or _single_part(shapes)


def by_sizes(channels: int | None, context: int | None) -> str | None:
    """The same from a U-Net's input channels and the channels of the text states; None for either is unknown."""
    if channels not in (None, LATENT):
        return _BY_CHANNELS.get(channels or 0, f"a checkpoint whose U-Net takes {channels} channels")
    return _BY_CONTEXT.get(context or 0)


def problems(shapes: Shapes, where: str, needs_vae: bool = True) -> list[Problem]:
    """Why a single file cannot be a base, as far as names and shapes tell; many pruned files have no VAE."""
    family = foreign(shapes)
    if family:
        remedy = "give it as train.vae, and an SD1.x checkpoint as the base" if family.startswith("a VAE") else NEEDED
        return [Problem(where, f"this is {family}", remedy)]
    parts = {"U-Net": UNET_PREFIX, "VAE": VAE_PREFIX, "text encoder": TEXT_PREFIX}
    full = "use a full SD1.x checkpoint"
    return [
        Problem(
            where,
            f"the checkpoint has no {name} (keys {prefix}…)",
            f"{full}, {OR_VAE}" if prefix == VAE_PREFIX else full,
        )
        for name, prefix in parts.items()
        if (needs_vae or prefix != VAE_PREFIX) and not any(key.startswith(prefix) for key in shapes)
    ]


def vae_problems(shapes: Shapes, where: str) -> list[Problem]:
    """Why a single file cannot be a VAE of SD1.x; a full checkpoint can, as it holds one."""
    remedy = "give an SD1.x VAE, such as vae-ft-mse-840000-ema-pruned"
    if not any(_VAE_KEY.match(key) for key in shapes):
        family = (foreign(shapes) or "something else").removesuffix(_NO_BASE)
        return [Problem(where, f"this is no VAE but {family}", remedy)]
    channels = _axis(shapes, "decoder.conv_in.weight", 1) or _axis(shapes, f"{VAE_PREFIX}decoder.conv_in.weight", 1)
    if channels not in (None, LATENT):
        return [Problem(where, f"this is a VAE of {channels} latent channels, where SD1.x has {LATENT}", remedy)]
    return []


def _single_part(shapes: Shapes) -> str | None:
    """A file that holds one of the three models, or an embedding's one or two tensors."""
    if any(key.startswith(UNET_PREFIX) for key in shapes):
        return None
    if _DIFFUSERS_UNET_KEY in shapes:
        return "the U-Net of a diffusers folder alone"
    if _any(_VAE_KEY, shapes):
        return "a VAE, not a base"
    if _any(_TEXT_KEY, shapes):
        return "a text encoder alone"
    if 0 < len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in _EMBEDDING_WIDTHS for s in shapes.values()):
        return "an embedding (textual inversion), not a base"
    return None


def _any(pattern: re.Pattern[str], keys: Iterable[str]) -> bool:
    return any(pattern.match(key) for key in keys)


def _axis(shapes: Shapes, key: str, axis: int) -> int | None:
    shape = shapes.get(key, ())
    return shape[axis] if len(shape) > axis else None
