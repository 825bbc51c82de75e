"""What a LoRA's file says about itself: kohya's `ss_…` and modelspec's keys, all values strings. Pure functions.

`schema.key(metadata=…)` names the keys that are written as they stand in the recipe; here is what has to be translated
or counted. Values are spelt as sd-scripts' `train_network.py` spells them (None, True, JSON), because readers compare
them. What depends on the time or the machine is not written, so that equal builds give equal bytes: no
`ss_session_id`, `ss_training_started_at`, `ss_training_finished_at`, `ss_sd_scripts_commit_hash`, `modelspec.date`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorac.captions import joined
from lorac.recipe.optimisers import OPTIMISERS
from lorac.recipe.schema import SECTIONS, keys
from lorac.recipe.sections.train import Train
from lorac.wildcards import first_showing

if TYPE_CHECKING:
    from lorac.recipe.recipe import Recipe
    from lorac.train.schedule import Summary

METADATA_LIMIT = 704 * 2**10
"""Bytes of metadata in a header; 1,400 tensors (LoCon with DoRA) need another 300 kB of the 1 MiB that ComfyUI shows.
"""

NONE_AT_ZERO = (
    "ss_ip_noise_gamma",
    "ss_multires_noise_iterations",
    "ss_network_dropout",
    "ss_noise_offset",
    "ss_training_comment",
)
"""Where the recipe writes nothing as 0 or "", and kohya as None."""


@dataclass(frozen=True)
class Folder:
    """One picture set of the recipe. `name` is shown to people; `tags` counts the pictures that may show a tag."""

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
    v_parameterization: bool = False
    zero_terminal_snr: bool = False


def metadata(recipe: Recipe, facts: Facts) -> dict[str, str]:
    """All keys that the file gets; with `output.metadata = false` only what a loader needs."""
    fields = _needed(recipe, facts)
    if recipe.output.metadata:
        fields |= _as_they_stand(recipe) | _identity(recipe, facts) | _training(recipe, facts) | _data(facts)
    texts = {key: _text(value) for key, value in sorted(fields.items())}
    if recipe.output.metadata and recipe.output.tag_frequency:
        used = sum(len(key.encode()) + len(_json(text).encode()) for key, text in texts.items())
        texts["ss_tag_frequency"] = _tag_frequency(facts.folders, METADATA_LIMIT - used)
    return texts


def trigger(recipe: Recipe) -> str:
    """The tags at the start of each training caption: the triggers of all folders, then `caption.prefix`.

    As they are trained: without marks, and with the first alternative of each choice, as no caption has none of them.
    """
    words = [word for pictures in recipe.sources for word in pictures.trigger]
    about = recipe.caption
    text = joined([*words, about.prefix])
    return joined(first_showing(text, about.keep_tokens_separator, about.enable_wildcard).tags)


def _needed(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """kohya's minimum, the keys that modelspec demands, and Forge's `modelspec.architecture`.

    A DoRA is LyCORIS's to kohya: `networks.lora` would leave its `dora_scale` out without a word.
    """
    arguments = _network_args(recipe)
    return {
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "v" if facts.v_parameterization else "epsilon",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": recipe.output.name,
        "ss_base_model_version": "sd_v1",
        "ss_network_alpha": recipe.network.alpha,
        "ss_network_dim": recipe.network.dim,
        "ss_network_module": "lycoris.kohya" if recipe.network.dora else "networks.lora",
        "ss_v2": False,
        **({"ss_network_args": arguments} if arguments else {}),
    }


def _network_args(recipe: Recipe) -> dict[str, str]:
    """The settings that kohya takes as `--network_args`, under its names, or LyCORIS's for rsLoRA and DoRA."""
    network, train = recipe.network, recipe.train
    values: dict[str, Any] = {
        "conv_dim": network.conv_dim,
        "conv_alpha": network.conv_alpha if network.conv_dim else None,
        "rank_dropout": network.rank_dropout or None,
        "module_dropout": network.module_dropout or None,
        "block_dims": network.block_dims,
        "block_alphas": network.block_alphas,
        "conv_block_dims": network.conv_block_dims,
        "conv_block_alphas": network.conv_block_alphas,
        "down_lr_weight": network.down_lr_weight,
        "mid_lr_weight": network.mid_lr_weight,
        "up_lr_weight": network.up_lr_weight,
        "loraplus_lr_ratio": train.loraplus_lr_ratio,
        "loraplus_unet_lr_ratio": train.loraplus_unet_lr_ratio,
        "loraplus_text_encoder_lr_ratio": train.loraplus_text_encoder_lr_ratio,
        "rs_lora": network.rslora or None,
        **({"algo": "lora", "dora_wd": True, "wd_on_output": False} if network.dora else {}),
    }
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _as_they_stand(recipe: Recipe) -> dict[str, Any]:
    """Each setting under the name that the schema's table has for it."""
    values = {
        about["metadata"]: getattr(getattr(recipe, section), key)
        for section, kind in SECTIONS.items()
        for key, about in keys(kind).items()
        if about["metadata"]
    }
    return values | {name: values[name] or None for name in NONE_AT_ZERO}


def _identity(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    output, train = recipe.output, recipe.train
    # A1111 inserts the alias as <lora:ALIAS:1>, where these characters end it.
    alias = (output.name or "").translate(str.maketrans(":>,", "___"))
    return {
        "lorac.recipe_hash": facts.recipe_hash,
        "modelspec.description": output.comment,
        "modelspec.encoder_layer": facts.clip_skip,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.trigger_phrase": trigger(recipe),
        "ss_new_sd_model_hash": facts.base_hash,
        "ss_output_name": alias,
        "ss_sd_model_name": facts.base_name,
        **({"ss_vae_name": train.vae} if train.vae else {}),
    }


def _training(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    train, loss, targets = recipe.train, recipe.loss, recipe.network.targets
    timesteps = (loss.min_timestep, loss.max_timestep)
    return {
        **({"modelspec.timestep_range": "{},{}".format(*timesteps)} if timesteps != (0, 1000) else {}),
        "ss_batch_size_per_device": train.batch_size,
        "ss_clip_skip": facts.clip_skip,
        "ss_epoch": facts.epoch,
        "ss_lr_warmup_steps": facts.warmup_steps,
        "ss_max_token_length": None if train.max_token_length == 75 else train.max_token_length,
        "ss_max_train_steps": facts.summary.steps,
        "ss_num_epochs": facts.summary.epochs,
        "ss_optimizer": _optimizer(train),
        "ss_steps": facts.steps,
        "ss_text_encoder_lr": train.text_encoder_lr if "text_encoder" in targets else None,
        "ss_total_batch_size": train.batch_size * train.gradient_accumulation_steps,
        "ss_unet_lr": train.unet_lr if "unet" in targets else None,
        "ss_validation_seed": recipe.validation.seed,
        "ss_validation_split": recipe.validation.split,
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
    }


def _optimizer(train: Train) -> str:
    """As kohya writes it: `module.Class(name=value,…)` with what was given to it."""
    own = {name: getattr(train, name) for name in ("weight_decay", "betas", "eps")}
    given = {name: value for name, value in own.items() if value is not None} | train.optimizer_args
    arguments = ",".join(f"{name}={value}" for name, value in given.items())
    return OPTIMISERS[train.optimizer].path + (f"({arguments})" if arguments else "")


def _data(facts: Facts) -> dict[str, Any]:
    def folders(regularisation: bool) -> dict[str, dict[str, int]]:
        chosen = (folder for folder in facts.folders if folder.regularisation == regularisation)
        return {folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures} for folder in chosen}

    buckets = {
        str(i): {"resolution": list(size), "count": count}
        for i, (size, count) in enumerate(sorted(facts.buckets.items()))
    }
    return {
        "ss_bucket_info": {"buckets": buckets},
        "ss_dataset_dirs": folders(regularisation=False),
        "ss_max_bucket_reso": facts.bucket_sides[1],
        "ss_min_bucket_reso": facts.bucket_sides[0],
        "ss_num_batches_per_epoch": facts.summary.batches_per_epoch,
        "ss_num_reg_images": sum(f.repeats * f.pictures for f in facts.folders if f.regularisation),
        "ss_num_train_images": facts.summary.train_samples,
        "ss_num_validation_images": facts.summary.validation_pictures,
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


def _text(value: object) -> str:
    return _json(value) if isinstance(value, dict) else str(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
