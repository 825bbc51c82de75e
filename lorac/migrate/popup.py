"""The popup's JSON (LoRA_Easy_Training_Scripts, January and February 2023) as kohya's arguments.

Its keys are the attributes of ArgStore; the program itself also took the names of another interface, so we do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorac.migrate.draft import Draft
from lorac.migrate.names import words
from lorac.migrate.values import unknown

# attribute: kohya's argument, its value in a fresh ArgStore
ATTRIBUTES: dict[str, tuple[str, Any]] = {
    "base_model": ("pretrained_model_name_or_path", None),
    "img_folder": ("train_data_dir", None),
    "reg_img_folder": ("reg_data_dir", None),
    "output_folder": ("output_dir", None),
    "change_output_name": ("output_name", None),
    "net_dim": ("network_dim", 128),
    "alpha": ("network_alpha", 128),
    "scheduler": ("lr_scheduler", "cosine_with_restarts"),
    "cosine_restarts": ("lr_scheduler_num_cycles", None),
    "scheduler_power": ("lr_scheduler_power", None),
    "learning_rate": ("learning_rate", 1e-4),
    "text_encoder_lr": ("text_encoder_lr", None),
    "unet_lr": ("unet_lr", None),
    "warmup_lr_ratio": ("lr_warmup_steps", 0),
    "batch_size": ("train_batch_size", 1),
    "save_every_n_epochs": ("save_every_n_epochs", 0),
    "shuffle_captions": ("shuffle_caption", False),
    "keep_tokens": ("keep_tokens", 0),
    "train_resolution": ("resolution", 512),
    "min_bucket_resolution": ("min_bucket_reso", 320),
    "max_bucket_resolution": ("max_bucket_reso", 960),
    "lora_model_for_resume": ("network_weights", None),
    "load_previous_save_state": ("resume", None),
    "gradient_acc_steps": ("gradient_accumulation_steps", None),
    "clip_skip": ("clip_skip", 2),
    "test_seed": ("seed", 23),
    "save_as": ("save_model_as", "safetensors"),
    "caption_extension": ("caption_extension", ".txt"),
    "max_clip_token_length": ("max_token_length", 150),
    "buckets": ("enable_bucket", True),
    "use_8bit_adam": ("use_8bit_adam", True),
    "use_lion": ("use_lion_optimizer", False),
    "no_meta": ("no_metadata", False),
    "log_dir": ("logging_dir", None),
    "num_workers": ("max_data_loader_n_workers", None),
    "persistent_workers": ("persistent_data_loader_workers", None),
    "unet_only": ("network_train_unet_only", False),
    "text_only": ("network_train_text_encoder_only", False),
    "save_precision": ("save_precision", "fp16"),
}
SAME_WORD = words(
    """
    training_comment prior_loss_weight gradient_checkpointing mixed_precision xformers cache_latents color_aug
    flip_aug vae noise_offset caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate
    bucket_reso_steps bucket_no_upscale v2 v_parameterization random_crop lowram save_state
    """
)
OLD = {
    "network_dim": "net_dim",
    "network_alpha": "alpha",
    "lr_scheduler": "scheduler",
    "lr_scheduler_num_cycles": "cosine_restarts",
    "lr_scheduler_power": "scheduler_power",
    "lr_warmup": "warmup_lr_ratio",
    "save_at_n_epochs": "save_every_n_epochs",
    "pretrained_model_name_or_path": "base_model",
    "train_data_dir": "img_folder",
    "reg_data_dir": "reg_img_folder",
    "output_dir": "output_folder",
    "output_name": "change_output_name",
    "max_resolution": "train_resolution",
    "train_batch_size": "batch_size",
    "epoch": "num_epochs",
    "num_cpu_threads_per_process": "num_workers",
    "enable_bucket": "buckets",
    "save_model_as": "save_as",
    "shuffle_caption": "shuffle_captions",
    "resume": "load_previous_save_state",
    "gradient_accumulation_steps": "gradient_acc_steps",
    "logging_dir": "log_dir",
    "seed": "test_seed",
    "max_token_length": "max_clip_token_length",
    "min_bucket_reso": "min_bucket_resolution",
    "max_bucket_reso": "max_bucket_resolution",
    "no_metadata": "no_meta",
}
"""Older and other interfaces' names -> attribute."""
OF_THE_POPUP = {
    "save_json_folder": "the recipe is the file to keep",
    "load_json_path": "extends in a recipe starts from another one",
    "json_load_skip_list": "belongs to the popup",
    "tag_occurrence_txt_file": "report.html and the file's metadata show the tags",
    "sort_tag_occurrence_alphabetically": "report.html and the file's metadata show the tags",
}
COUNTED = ("num_epochs", "max_steps")
"""Read by `length`."""
COUNTED_EPOCHS = "persistent_workers"
"""Since 2023-02-04, when this attribute came, the popup gives kohya epochs instead of steps counted by itself."""


def arguments(data: Mapping[str, Any], draft: Draft) -> tuple[dict[str, Any], dict[str, str]]:
    """kohya's arguments, and for each the name that the JSON has for it. What is no setting is left with a reason."""
    given: dict[str, Any] = {}
    words: dict[str, str] = {}
    for name, value in data.items():
        attribute = name if name in ATTRIBUTES or name in SAME_WORD else OLD.get(name, name)
        if attribute in ATTRIBUTES or attribute in SAME_WORD:
            given[attribute], words[attribute] = value, name
        elif attribute in OF_THE_POPUP:
            if value:
                draft.leave(name, value, OF_THE_POPUP[attribute])
        elif attribute not in COUNTED:
            known = [*ATTRIBUTES, *SAME_WORD, *OLD, *COUNTED]
            draft.leave(name, value, unknown(name, known).replace("kohya", "the popup"))
    found: dict[str, Any] = {}
    shown: dict[str, str] = {}
    for attribute, (argument, default) in (ATTRIBUTES | {word: (word, None) for word in SAME_WORD}).items():
        value = given.get(attribute)
        found[argument] = default if value is None else value
        shown[argument] = words.get(attribute, attribute)
    return _as_passed(found), shown


def _as_passed(found: dict[str, Any]) -> dict[str, Any]:
    """What the popup hands on: not learning rates of 0, not both optimisers, accumulation only with checkpointing."""
    for rate in ("text_encoder_lr", "unet_lr"):
        if not found[rate]:
            found[rate] = None
    if not found["gradient_checkpointing"]:
        found["gradient_accumulation_steps"] = None
    if found["use_8bit_adam"] or not found["use_lion_optimizer"]:
        found["use_lion_optimizer"] = None
    if found["lr_scheduler"] != "polynomial":
        found["lr_scheduler_power"] = None
    if found["lr_scheduler"] != "cosine_with_restarts":
        found["lr_scheduler_num_cycles"] = None
    if not found["v2"]:
        found["v_parameterization"] = None
    return found


def length(data: Mapping[str, Any], samples: int | None, draft: Draft) -> None:
    """The length of the run: the popup's own count of steps, or kohya's epochs since it passed those."""
    epochs, steps = data.get("num_epochs", data.get("epoch", 1)), data.get("max_steps")
    batch = data.get("batch_size", data.get("train_batch_size", 1)) or 1
    epochs, batch = _whole(epochs), _whole(batch)
    if steps:
        draft.put("train", "steps", _whole(steps))
    elif COUNTED_EPOCHS in data:
        draft.put("train", "epochs", epochs)
    elif samples is None:
        comment = "the popup counted steps without regularisation: with it, half as many epochs"
        draft.put("train", "epochs", epochs, comment)
    else:
        comment = f"as the popup counted: {samples} samples / batch {batch} x {epochs}, without regularisation"
        draft.put("train", "steps", max(1, samples // batch * epochs), comment)


def _whole(value: Any) -> int:
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return 1
