"""Every setting of sd-scripts' train_network.py (48d368fa, 2026-02) for SD 1.x, and what becomes of it.

SAME and NETWORK_SAME mean what the schema's key of that kohya name means. Others either are read by a function in
`kohya.py`, or need nothing here, or cannot be had; the text says why, or what to do instead.
"""

from __future__ import annotations

from lorac.recipe.schema import SECTIONS, keys


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SAME = words(
    """
    caption_extension keep_tokens keep_tokens_separator shuffle_caption enable_wildcard caption_suffix
    caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate network_dim network_alpha
    network_dropout network_weights scale_weight_norms pretrained_model_name_or_path vae enable_bucket
    min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale flip_aug train_batch_size
    gradient_accumulation_steps learning_rate unet_lr lr_scheduler lr_scheduler_num_cycles lr_scheduler_power
    lr_scheduler_timescale lr_scheduler_min_lr_ratio lr_warmup_steps lr_decay_steps max_grad_norm seed clip_skip
    max_token_length save_every_n_epochs max_train_epochs max_train_steps prior_loss_weight loss_type
    huber_schedule huber_c huber_scale min_snr_gamma debiased_estimation_loss noise_offset
    noise_offset_random_strength adaptive_noise_scale multires_noise_iterations multires_noise_discount
    ip_noise_gamma ip_noise_gamma_random_strength v_parameterization zero_terminal_snr
    scale_v_pred_loss_like_noise_pred v_pred_like_loss min_timestep max_timestep validation_split
    validation_seed output_name training_comment
    """
)

NETWORK_SAME = words(
    """
    conv_dim conv_alpha block_dims block_alphas conv_block_dims conv_block_alphas down_lr_weight mid_lr_weight
    up_lr_weight rank_dropout module_dropout loraplus_lr_ratio loraplus_unet_lr_ratio
    loraplus_text_encoder_lr_ratio dora_wd
    """
)

AT: dict[str, tuple[str, str]] = {}
"""kohya's name -> (section, key) of the schema."""
for _section in ("caption", "network", "train", "loss", "validation", "output"):
    for _name, _facts in keys(SECTIONS[_section]).items():
        AT.setdefault(_facts["kohya"] or _name, (_section, _name))


def _table(text: str) -> dict[str, str]:
    """`names: why`, a line each -> why, by name."""
    pairs = (line.partition(":") for line in text.strip().splitlines())
    return {name: why.strip() for names, _, why in pairs for name in names.split()}


UNNEEDED = _table(
    """
    xformers sdpa mem_eff_attn: lorac takes the fastest attention that is there
    cache_latents cache_latents_to_disk skip_cache_check cache_info vae_batch_size: lorac keeps latents by content
    max_data_loader_n_workers persistent_data_loader_workers: lorac loads pictures once; see `lorac build -j`
    mixed_precision full_fp16 full_bf16 no_half_vae lowram highvram: lorac chooses precision and memory for the device
    gradient_checkpointing cpu_offload_checkpointing torch_compile dynamo_backend: lorac plans memory and speed itself
    logging_dir log_with log_prefix log_tracker_name log_tracker_config log_config wandb_run_name: see report.html
    console_log_level console_log_file console_log_simple wandb_api_key: `lorac build --json` logs every event
    save_state save_state_on_train_end resume save_last_n_epochs_state save_last_n_steps_state: a build always resumes
    skip_until_initial_step initial_epoch initial_step: a build always resumes where it was
    output_dir: `lorac build --out FOLDER` says where files go
    output_config config_file debug_dataset: `lorac plan` and `lorac captions` show what a recipe means
    tokenizer_cache_dir: the tokenizer comes with lorac
    fused_backward_pass ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph: lorac trains on one device
    sample_every_n_epochs sample_every_n_steps sample_at_first: lorac draws samples with the finished LoRA
    network_module: lorac has one network, whose [network] keys make it LoRA, LoCon or DoRA
    validate_every_n_epochs validate_every_n_steps max_validation_steps: lorac validates after each saved epoch
    metadata_title metadata_author metadata_license metadata_merged_from metadata_preprocessor: write it into [output]
    metadata_thumbnail metadata_is_negative_embedding metadata_tags: write what users shall know into [output]
    in_json: lorac reads captions beside the pictures; write them as text files
    dataset_repeats: counts only for in_json, and for folders of a dataset_config that name no num_repeats
    token_warmup_min: counts only with token_warmup_step
    """
)

UNSUPPORTED = _table(
    """
    v2: lorac trains SD 1.x only
    color_aug random_crop face_crop_aug_range: lorac crops at the centre and keeps colours; add pictures instead
    token_warmup_step: lorac trains all tags from the start
    weighted_captions: lorac reads (tag:1.2) as plain text; write tags without weights
    secondary_separator: split such tags in the caption files
    caption_separator: lorac separates tags by commas; write commas into the caption files
    resize_interpolation: lorac averages areas when shrinking, else uses Lanczos, as kohya of today does by itself
    save_every_n_steps: use save_every_n_epochs
    save_n_epoch_ratio: use save_every_n_epochs
    save_last_n_epochs save_last_n_steps: lorac keeps every saved epoch; delete the files you do not want
    save_model_as: lorac writes .safetensors
    fp8_base fp8_base_unet: lorac keeps the base in 16 bits
    deepspeed zero_stage offload_optimizer_device offload_optimizer_nvme_path offload_param_device: one device only
    offload_param_nvme_path zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients: one device only
    base_weights base_weights_multiplier: merge LoRAs into the base beforehand and name that file as base
    dim_from_weights: give the dim of that LoRA in [network]
    lr_scheduler_type: lorac has kohya's own schedulers only
    huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token: lorac uploads nothing
    huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface async_upload: lorac uploads nothing
    conditioning_data_dir dataset_class metadata_file: lorac learns from pictures and text files only
    masked_loss: lorac masks by the pictures' own transparency; see alpha_mask in [[source]]
    custom_attributes network_multiplier: lorac has no such setting
    """
)

NETWORK_UNSUPPORTED = _table(
    """
    algo: lorac trains LoRA, LoCon (conv_dim) and DoRA only
    block_lr_zero_threshold: write 0 for such blocks in the lr weights
    preset: targets in [network] choose U-Net and text encoder; block_dims choose blocks
    use_tucker use_cp use_scalar decompose_both factor weight_decompose constraint rescaled: belongs to another algo
    verbose varbose: `lorac inspect` lists the modules
    """
)
"""Of `network_args`, those of LyCORIS too."""

BLOCKWISE = ("block_dims", "down_lr_weight", "mid_lr_weight", "up_lr_weight")
"""Any of these makes kohya read conv_block_dims and conv_block_alphas (networks/lora.py)."""

OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "pagedadamw": "adamw",
    "pagedadamw8bit": "adamw8bit",
    "pagedadamw32bit": "adamw",
    "lion": "lion",
    "lion8bit": "lion",
    "pagedlion8bit": "lion",
    "prodigy": "prodigy",
    "adafactor": "adafactor",
    "adamwschedulefree": "adamw_schedule_free",
    "schedulefree.adamwschedulefree": "adamw_schedule_free",
}
"""kohya's optimizer_type in small letters -> lorac's optimizer."""

LR_WEIGHTS = ("sine", "cosine", "linear", "reverse_linear", "zeros")
"""Names that kohya takes for twelve lr weights, with `+0.25` behind them for a least weight."""
