"""The files that other programs read: the LoRA with its metadata, and the JSON file beside it. Pure functions.

What is written is what some reader uses: A1111 and Forge show `ss_*` and take `sshs_model_hash` for the file's short
hash, Forge needs `modelspec.architecture`, Civitai and managers read `modelspec.*`. Nothing depends on the time or the
machine, so equal builds give equal bytes. ComfyUI shows no metadata of a header above 1 MiB; tag counts are cut to fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lorac.errors import TrainingDiverged
from lorac.sd import safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorac.recipe.recipe import Recipe
    from lorac.train.schedule import Summary

_TENSORS = (".lora_down.weight", ".lora_up.weight", ".dora_scale", ".alpha")
METADATA_LIMIT = 768 * 2**10
"""Bytes of metadata in a header; 792 tensors need another 160 kB of the 1 MiB that ComfyUI allows."""


@dataclass(frozen=True)
class Folder:
    """One picture set of the recipe. `name` is shown to people; `tags` counts the pictures that have a tag."""

    name: str
    repeats: int
    pictures: int
    regularisation: bool
    tags: Mapping[str, int]


@dataclass(frozen=True)
class Facts:
    """What is known about a LoRA beyond its recipe, with everything filled in that the base decides.

    base_name: the checkpoint's file name without its folder; base_hash: its SHA-256 in hexadecimal; buckets: number of
    samples in an epoch by (width, height); epoch, steps: how far this file's training went.
    """

    base_name: str
    base_hash: str
    resolution: int
    bucket_sides: tuple[int, int]
    clip_skip: int
    warmup_steps: int
    summary: Summary
    epoch: int
    steps: int
    folders: Sequence[Folder]
    buckets: Mapping[tuple[int, int], int]
    recipe_hash: str


def metadata(recipe: Recipe, facts: Facts) -> dict[str, str]:
    """kohya's and modelspec's keys that readers use. With `output.metadata = false`: only what a loader needs."""
    fields: dict[str, Any] = {
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "epsilon",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": recipe.output.name,
        "ss_base_model_version": "sd_v1",
        "ss_network_alpha": recipe.network.alpha,
        "ss_network_dim": recipe.network.dim,
        "ss_network_module": "networks.lora",
        "ss_v2": False,
    }
    if recipe.output.metadata:
        fields |= _identity(recipe, facts) | _hyperparameters(recipe, facts) | _data(recipe, facts)
        texts = {key: _text(value) for key, value in fields.items()}
        used = sum(len(key.encode()) + len(_json(text).encode()) for key, text in texts.items())
        texts["ss_tag_frequency"] = _tag_frequency(facts.folders, METADATA_LIMIT - used)
        return texts
    return {key: _text(value) for key, value in fields.items()}


def lora_file(
    state: Mapping[str, Tensor], texts: Mapping[str, str], precision: Literal["fp16", "bf16", "fp32"]
) -> bytes:
    """The `.safetensors` file of a training state: its LoRA tensors in `precision`, alphas too, and the hashes.

    Raises TrainingDiverged if a value is not finite in that precision.
    """
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    tensors = {name: tensor.to(dtype) for name, tensor in _rescaled(state, dtype).items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            diverged = not torch.isfinite(state[name]).all()
            remedy = "train with a smaller learning_rate" if diverged else 'set output.precision to "fp32"'
            raise TrainingDiverged(f"{name}: a value is not finite as {precision}; {remedy}")
    digest = safetensors.tensor_hash(tensors)
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    return safetensors.serialise(tensors, {**texts, **hashes})


def _rescaled(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The LoRA tensors of a state. What an alpha loses in `dtype`, as rsLoRA's α · √rank does, goes into `up`."""
    tensors = {name: tensor for name, tensor in state.items() if name.endswith(_TENSORS) and name.startswith("lora_")}
    for name, alpha in state.items():
        if name in tensors and name.endswith(".alpha") and (rounded := alpha.to(dtype).float()) != alpha:
            up = name.removesuffix(".alpha") + ".lora_up.weight"
            tensors[up] = tensors[up] * (alpha / rounded)
    return tensors


def sidecar(recipe: Recipe, facts: Facts) -> bytes:
    """`NAME.json` as A1111 and Forge write it and InvokeAI reads it: what they insert when the LoRA is picked."""
    output = recipe.output
    made = f"lorac recipe {facts.recipe_hash[:12]}, base {facts.base_name} ({facts.base_hash[:12]})"
    fields = {
        "description": output.comment,
        "sd version": "SD1",
        "activation text": _trigger(recipe),
        "preferred weight": output.preferred_weight or 0.0,
        "negative text": output.negative,
        "notes": f"{output.notes}\n{made}" if output.notes else made,
    }
    return (json.dumps(fields, ensure_ascii=False, indent=4) + "\n").encode()


def _identity(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    output = recipe.output
    # A1111 inserts the alias as <lora:ALIAS:1>, where these characters end it.
    alias = (output.name or "").translate(str.maketrans(":>,", "___"))
    return {
        "lorac.recipe_hash": facts.recipe_hash,
        "modelspec.description": output.comment,
        "modelspec.encoder_layer": facts.clip_skip,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.trigger_phrase": _trigger(recipe),
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_output_name": alias,
        "ss_sd_model_name": facts.base_name,
        "ss_training_comment": output.comment or None,
    }


def _hyperparameters(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    train, caption = recipe.train, recipe.caption
    betas, decay = train.betas or (0.9, 0.999), 0.01 if train.weight_decay is None else train.weight_decay
    return {
        "ss_batch_size_per_device": train.batch_size,
        "ss_caption_dropout_every_n_epochs": caption.caption_dropout_every_n_epochs,
        "ss_caption_dropout_rate": caption.caption_dropout_rate,
        "ss_caption_tag_dropout_rate": caption.caption_tag_dropout_rate,
        "ss_clip_skip": facts.clip_skip,
        "ss_epoch": facts.epoch,
        "ss_keep_tokens": caption.keep_tokens,
        "ss_learning_rate": train.learning_rate,
        "ss_lr_scheduler": train.lr_scheduler,
        "ss_lr_warmup_steps": facts.warmup_steps,
        "ss_max_grad_norm": train.max_grad_norm,
        "ss_max_token_length": None if train.max_token_length == 75 else train.max_token_length,
        "ss_max_train_steps": facts.summary.steps,
        "ss_num_epochs": facts.summary.epochs,
        "ss_optimizer": f"torch.optim.adamw.AdamW(weight_decay={decay},betas={betas},eps={train.eps or 1e-8})",
        "ss_prior_loss_weight": recipe.loss.prior_loss_weight,
        "ss_seed": train.seed,
        "ss_shuffle_caption": caption.shuffle_caption,
        "ss_steps": facts.steps,
        "ss_text_encoder_lr": train.text_encoder_lr if "text_encoder" in recipe.network.targets else None,
        "ss_total_batch_size": train.batch_size,
        "ss_unet_lr": train.unet_lr if "unet" in recipe.network.targets else None,
    }


def _data(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    def folders(regularisation: bool) -> dict[str, dict[str, int]]:
        chosen = (folder for folder in facts.folders if folder.regularisation == regularisation)
        return {folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures} for folder in chosen}

    buckets = {
        str(i): {"resolution": list(size), "count": count}
        for i, (size, count) in enumerate(sorted(facts.buckets.items()))
    }
    return {
        "ss_bucket_info": {"buckets": buckets},
        "ss_bucket_no_upscale": recipe.train.bucket_no_upscale,
        "ss_dataset_dirs": folders(regularisation=False),
        "ss_enable_bucket": recipe.train.enable_bucket,
        "ss_max_bucket_reso": facts.bucket_sides[1],
        "ss_min_bucket_reso": facts.bucket_sides[0],
        "ss_num_batches_per_epoch": facts.summary.batches_per_epoch,
        "ss_num_reg_images": sum(f.repeats * f.pictures for f in facts.folders if f.regularisation),
        "ss_num_train_images": sum(f.repeats * f.pictures for f in facts.folders if not f.regularisation),
        "ss_reg_dataset_dirs": folders(regularisation=True),
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
    }


def _tag_frequency(folders: Sequence[Folder], limit: int) -> str:
    """`{folder: {tag: count}}` with the commonest tags of each folder, as many as fit into `limit` bytes of header."""
    keep = max((len(folder.tags) for folder in folders), default=0)
    while keep:
        counts = {
            folder.name: dict(sorted(folder.tags.items(), key=lambda item: (-item[1], item[0]))[:keep])
            for folder in folders
        }
        text = _json(counts)
        if len(_json(text).encode()) <= limit:
            return text
        keep //= 2
    return "{}"


def _trigger(recipe: Recipe) -> str:
    words = (word for pictures in recipe.sources for word in pictures.trigger)
    return ", ".join(dict.fromkeys(words))


def _text(value: object) -> str:
    return _json(value) if isinstance(value, dict) else str(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
