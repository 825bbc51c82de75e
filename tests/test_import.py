"""`lorac import`: each thing that kohya's users have becomes a recipe, and what it cannot hold is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from safetensors.torch import load_file, save_file

from lorac.migrate.kohya import PICTURE_ARGUMENTS
from lorac.migrate.names import AT, NETWORK_SAME, NETWORK_UNSUPPORTED, SAME, UNNEEDED, UNSUPPORTED
from lorac.migrate.special import SPECIAL
from lorac.recipe.load import load
from lorac.recipe.recipe import Recipe
from lorac.recipe.schema import SECTIONS, keys
from tests.kohya import ARTICLE, article_set, pictures
from tests.running import lorac, refused

# Every argument that train_network.py of kohya-ss/sd-scripts 48d368fa adds, read out of its add_argument calls.
ARGUMENTS = """
adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier bucket_no_upscale bucket_reso_steps
cache_info cache_latents cache_latents_to_disk caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
conditioning_data_dir config_file console_log_file console_log_level console_log_simple cpu_offload_checkpointing
dataset_class dataset_config dataset_repeats ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout
debiased_estimation_loss debug_dataset deepspeed dim_from_weights dynamo_backend enable_bucket enable_wildcard
face_crop_aug_range flip_aug fp16_master_weights_and_gradients fp8_base fp8_base_unet full_bf16 full_fp16
fused_backward_pass gradient_accumulation_steps gradient_checkpointing highvram huber_c huber_scale huber_schedule
huggingface_path_in_repo huggingface_repo_id huggingface_repo_type huggingface_repo_visibility huggingface_token in_json
initial_epoch initial_step ip_noise_gamma ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate
log_config log_prefix log_tracker_config log_tracker_name log_with logging_dir loss_type lowram lr_decay_steps
lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss max_bucket_reso max_data_loader_n_workers
max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps max_validation_steps mem_eff_attn
metadata_author metadata_description metadata_is_negative_embedding metadata_license metadata_merged_from
metadata_preprocessor metadata_tags metadata_thumbnail metadata_title metadata_trigger_phrase metadata_usage_hint
min_bucket_reso min_snr_gamma min_timestep mixed_precision multires_noise_discount multires_noise_iterations
network_alpha network_args network_dim network_dropout network_module network_train_text_encoder_only
network_train_unet_only network_weights no_half_vae no_metadata noise_offset noise_offset_random_strength
offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path optimizer_args
optimizer_type output_config output_dir output_name persistent_data_loader_workers pretrained_model_name_or_path
prior_loss_weight random_crop reg_data_dir resize_interpolation resolution resume resume_from_huggingface
sample_at_first sample_every_n_epochs sample_every_n_steps sample_prompts sample_sampler
save_every_n_epochs save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps
save_last_n_steps_state save_model_as save_n_epoch_ratio
save_precision save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred
scale_weight_norms sdpa secondary_separator seed shuffle_caption skip_cache_check skip_until_initial_step
text_encoder_lr token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile train_batch_size train_data_dir
training_comment unet_lr use_8bit_adam use_lion_optimizer v2 v_parameterization v_pred_like_loss vae vae_batch_size
validate_every_n_epochs validate_every_n_steps validation_seed validation_split wandb_api_key wandb_run_name
weighted_captions xformers zero3_init_flag zero3_save_16bit_model zero_stage zero_terminal_snr
""".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(path: object, *options: object) -> tuple[str, Recipe]:
    """The text of the recipe and what it means on the embedded base; what was said on standard error is dropped."""
    done = lorac("import", path, *options)
    assert done.exit_code == 0, done.output
    Path("made.toml").write_text(done.stdout, encoding="utf-8")
    (found,) = load([Path("made.toml")], base="builtin:mini")
    return done.stdout, found


def planned(*arguments: object) -> str:
    done = lorac("plan", *arguments, "--base", "builtin:mini")
    assert done.exit_code == 0, done.output
    return done.stdout


def config(text: str, name: str = "config.toml") -> Path:
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def leftovers(text: str) -> dict[str, str]:
    """Names behind "Not carried over" and the rest of their lines."""
    lines = text.partition("# Not carried over:\n")[2].splitlines()
    return {name: rest for name, _, rest in (line.removeprefix("#   ").partition(" = ") for line in lines)}


# -- the article's sets ----------------------------------------------------------------------------


def popup_json(folder: str, reg: str | None, **changes: Any) -> Path:
    """What the popup of January 2023 saved for the article, in its attributes' names."""
    data = {
        "base_model": "E:\\sd\\models\\nai.ckpt",
        "img_folder": folder,
        "output_folder": "E:\\out",
        "change_output_name": "riho",
        "save_json_folder": None,
        "load_json_path": None,
        "net_dim": 128,
        "alpha": 128,
        "scheduler": "cosine_with_restarts",
        "warmup_lr_ratio": 0.01,
        "learning_rate": 0.0001,
        "text_encoder_lr": None,
        "unet_lr": None,
        "batch_size": 1,
        "num_epochs": 6,
        "save_at_n_epochs": 1,
        "shuffle_captions": True,
        "keep_tokens": 1,
        "train_resolution": 512,
        "min_bucket_resolution": 320,
        "max_bucket_resolution": 960,
        "lora_model_for_resume": None,
        "save_state": False,
        "load_previous_save_state": None,
        "training_comment": None,
        "reg_img_folder": reg,
        "clip_skip": 2,
        "test_seed": 23,
        "prior_loss_weight": 1,
        "gradient_checkpointing": False,
        "gradient_acc_steps": None,
        "mixed_precision": "fp16",
        "save_precision": "fp16",
        "save_as": "safetensors",
        "caption_extension": ".txt",
        "max_clip_token_length": 150,
        "buckets": True,
        "xformers": True,
        "use_8bit_adam": True,
        "cache_latents": True,
        "color_aug": False,
        "flip_aug": False,
        "vae": None,
        "no_meta": False,
    } | changes
    Path("popup.json").write_text(json.dumps(data), encoding="utf-8")
    return Path("popup.json")


def as_folder(name: str, reg: str | None) -> list[object]:
    return [name, *(["--reg", reg] if reg else [])]


def as_config(name: str, reg: str | None) -> list[object]:
    steps = ARTICLE[name][1]
    more = f'reg_data_dir = "{reg}"' if reg else ""
    text = f'[a]\ntrain_data_dir = "{name}"\n{more}\n[b]\nmax_train_steps = {steps}\ncaption_extension = ".txt"\n'
    return [config(text + 'pretrained_model_name_or_path = "nai.ckpt"\nresolution = "512,512"\nenable_bucket = true\n')]


def as_dataset(name: str, reg: str | None) -> list[object]:
    text = '[general]\ncaption_extension = ".txt"\n[[datasets]]\nresolution = 512\nenable_bucket = true\n'
    for folder, _, _ in ARTICLE[name][0]:
        text += f"[[datasets.subsets]]\nimage_dir = '{name}/{folder}'\nnum_repeats = {int(folder.split('_')[0])}\n"
    if reg:
        text += f"[[datasets.subsets]]\nimage_dir = '{reg}/1_1girl'\nis_reg = true\nclass_tokens = '1girl'\n"
    return [config(text)]


def as_json(name: str, reg: str | None) -> list[object]:
    return [popup_json(str(Path(name).absolute()), reg and str(Path(reg).absolute()))]


WAYS = [as_folder, as_config, as_dataset, as_json]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARTICLE)
def test_the_articles_sets_have_the_articles_steps(way: Any, name: str) -> None:
    steps = article_set(Path(name), name)
    imported(*way(name, None))
    plan = planned("made.toml")
    assert f" {steps} steps = 6 epochs" in plan
    assert f"epoch           {steps // 6} steps of batch 1" in plan


@pytest.mark.parametrize("way", WAYS)
def test_the_head_set_is_matched_with_400_regularisation_pictures(way: Any) -> None:
    article_set(Path("head"), "head")
    pictures(Path("reg/1_1girl"), 400)
    _, recipe = imported(*way("head", "reg"))
    plan = planned("made.toml")
    assert "matched one to one: 468 regularisation samples beside 468" in plan
    assert "2808 steps = 3 epochs; a training picture is seen 108 times" in plan
    assert [(s.repeats, s.caption) for s in recipe.regularisation] == [(1, "1girl")]
    assert recipe.sources[0].trigger == ("izumi riho",) and recipe.sources[0].alpha == "white"


@pytest.mark.parametrize("way", [as_folder, as_json])
def test_the_articles_hidden_defaults_come_along(way: Any) -> None:
    article_set(Path("head"), "head")
    _, recipe = imported(*way("head", None))
    train = recipe.train
    assert (recipe.network.dim, recipe.network.alpha, train.clip_skip, train.seed) == (128, 128, 2, 23)
    assert (train.learning_rate, train.lr_scheduler, train.lr_warmup_steps) == (1e-4, "cosine_with_restarts", 0.01)
    assert (train.max_token_length, train.latents, train.bucket_list) == (150, "sample", "2023")
    assert (recipe.caption.shuffle_caption, recipe.caption.keep_tokens, train.save_every_n_epochs) == (True, 1, 1)


# -- folders, captions, triggers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        ({}, ("izumi riho",)),  # kohya trains the class tokens
        ({0: "riho, smile", 1: "riho, hat"}, ("riho",)),
        ({0: "Riho_A, smile", 1: "riho a, hat"}, ("Riho A",)),
        ({0: "riho, smile", 1: "hat, riho"}, ()),
        ({0: "1girl, smile", 1: "1girl, hat"}, ()),  # calls nobody in particular
        ({0: "riho, smile"}, ("izumi riho",)),  # a picture without caption
    ],
)
def test_the_trigger_leaves_captions_as_kohya_has_them(captions: dict[int, str], trigger: tuple[str, ...]) -> None:
    pictures(Path("set/5_izumi_riho"), 2)
    for number, text in captions.items():
        Path(f"set/5_izumi_riho/{number:03}.txt").write_text(text, encoding="utf-8")
    _, recipe = imported("set")
    assert recipe.sources[0].trigger == trigger
    if len(captions) == 2:
        lines = lorac("captions", "made.toml").stdout.splitlines()[1:]
        trained = [line.split(".png  ")[1] for line in lines]
        assert trained == [text.replace("_", " ").replace("riho a", "Riho A") for text in captions.values()]


def test_folders_that_kohya_ignores_are_named_and_transparency_is_looked_for() -> None:
    pictures(Path("set/2_a"), 1)
    pictures(Path("set/3_b"), 1, clear=True)
    pictures(Path("set/0_c"), 1)
    pictures(Path("set/drafts"), 1)
    (Path("set/4_empty")).mkdir()
    text, recipe = imported("set")
    assert [(source.repeats, source.alpha) for source in recipe.sources] == [(2, None), (3, "white")]
    assert '"drop" repeats that' in text
    assert "0_c" in text and "drafts" in text


def test_captions_of_kohyas_own_extension() -> None:
    pictures(Path("set/2_a"), 2, "riho", extension=".caption")
    assert imported("set")[1].caption.extension == ".caption"


def test_a_config_that_forgot_the_extension_trains_class_tokens_and_says_so() -> None:
    pictures(Path("set/2_izumi_riho"), 2, "riho")
    config('train_data_dir = "set"')
    done = lorac("import", "config.toml")
    assert '2 .txt files are not read, as kohya read ".caption" here' in done.stderr
    _, recipe = imported("config.toml")
    assert recipe.caption.extension == ".caption" and recipe.sources[0].trigger == ("izumi riho",)


def test_names_that_are_not_ascii() -> None:
    pictures(Path("学習 フォルダ/3_井澄 リホ"), 1)
    _, recipe = imported("学習 フォルダ")
    assert recipe.sources[0].trigger == ("井澄 リホ",)
    assert 'path = "学習 フォルダ/3_井澄 リホ"' in Path("made.toml").read_text("utf-8")


def test_paths_start_from_the_recipe() -> None:
    pictures(Path("data/set/3_a"), 1)
    Path("recipes").mkdir()
    assert lorac("import", "data/set", "-o", "recipes/a.toml").exit_code == 0
    assert 'path = "../data/set/3_a"' in Path("recipes/a.toml").read_text("utf-8")
    planned("recipes/a.toml")


def test_paths_of_another_machine_are_kept_and_named() -> None:
    data = 'train_data_dir = "D:\\\\lora\\\\set"\npretrained_model_name_or_path = \'E:\\sd\\nai "x".ckpt\'\n'
    config(data + "vae = '\\\\server\\vae.pt'")
    done = lorac("import", "config.toml")
    tables = tomli.loads(done.stdout)
    assert tables["source"][0]["path"] == "D:/lora/set"
    assert (tables["train"]["base"], tables["train"]["vae"]) == ('E:/sd/nai "x".ckpt', "//server/vae.pt")
    for words in ('picture folder "D:/lora/set"', 'base "E:/sd/nai "x".ckpt"', 'vae "//server/vae.pt"'):
        assert f"lorac: {words} is not on this machine; correct it in the recipe" in done.stderr.splitlines()


# -- settings --------------------------------------------------------------------------------------


def test_every_argument_of_kohya_has_one_answer() -> None:
    answers = [SAME, UNNEEDED.keys(), UNSUPPORTED.keys(), PICTURE_ARGUMENTS]
    for name in ARGUMENTS:
        assert sum(name in answer for answer in answers) == 1 or name in SPECIAL, name
    assert {AT[name] for name in SAME} <= {(s, key) for s, kind in SECTIONS.items() for key in keys(kind)}
    assert set(SAME) <= set(ARGUMENTS)
    assert {AT[name][0] for name in NETWORK_SAME} == {"network", "train"}


def test_every_argument_is_in_the_recipe_or_in_a_comment() -> None:
    """Whatever its value is, here one that fits nowhere."""
    pictures(Path("set/2_a"), 1)
    strange = [name for name in ARGUMENTS if name not in PICTURE_ARGUMENTS]
    config('train_data_dir = "set"\n' + "".join(f"{name} = [[1]]\n" for name in strange))
    text, _ = imported("config.toml")
    for name in strange:
        assert name in SPECIAL or f"#   {name} = [[1]]: " in text
        assert f"#   {name} = [[1]]: kohya has no such" not in text


def test_numbers_carry_over() -> None:
    pictures(Path("set/2_a"), 1, "a", extension=".caption")
    text = """
    train_data_dir = "set"
    pretrained_model_name_or_path = "nai.ckpt"
    network_dim = 32
    network_alpha = 16
    network_dropout = 0.1
    network_args = ["conv_dim=8", "conv_alpha=4", "block_dims=DIMS", "up_lr_weight=1,1,.5", "mid_lr_weight=0.5",
                    "loraplus_lr_ratio=16", "rank_dropout=0.2", "module_dropout=0.3", "dora_wd=True", "rs_lora=True"]
    optimizer_type = "Adafactor"
    optimizer_args = ["weight_decay=0.1", "relative_step=False", "decay_rate=-0.7"]
    learning_rate = "1e-4"
    text_encoder_lr = [5e-5, 1e-5]
    unet_lr = 2e-4
    lr_scheduler = "piecewise_constant"
    lr_scheduler_args = ["step_rules='1:100,0.1'"]
    max_train_epochs = 8
    max_train_steps = 99
    train_batch_size = 2
    gradient_accumulation_steps = 4
    resolution = [448, 576]
    enable_bucket = true
    min_bucket_reso = 250
    max_bucket_reso = 1000
    min_snr_gamma = 5
    noise_offset = 0.05
    save_precision = "float"
    no_metadata = true
    seed = 42
    caption_dropout_rate = 0.1
    save_every_n_epochs = 2
    network_train_unet_only = true
    output_name = "riho"
    validation_split = 0.1
    """.replace("DIMS", ",".join(["4"] * 25))
    text, recipe = imported(config(text))
    network, train = recipe.network, recipe.train
    assert (network.dim, network.alpha, network.dropout, network.conv_dim, network.conv_alpha) == (32, 16, 0.1, 8, 4)
    assert network.block_dims == (4,) * 25 and network.up_lr_weight == (1, 1, 0.5, *[1.0] * 9)
    assert (network.mid_lr_weight, network.rank_dropout, network.module_dropout) == (0.5, 0.2, 0.3)
    assert (network.dora, network.rslora, network.targets, train.loraplus_lr_ratio) == (True, True, ("unet",), 16)
    assert (train.optimizer, train.weight_decay) == ("adafactor", 0.1)
    assert train.optimizer_args == {"relative_step": False, "decay_rate": -0.7}
    assert (train.learning_rate, train.text_encoder_lr, train.unet_lr) == (1e-4, 5e-5, 2e-4)
    assert (train.lr_scheduler, train.lr_scheduler_step_rules) == ("piecewise_constant", "1:100,0.1")
    assert (train.epochs, train.steps, train.batch_size, train.gradient_accumulation_steps) == (8, None, 2, 4)
    assert (train.resolution, train.min_bucket_reso, train.max_bucket_reso) == (512, 192, 1024)
    assert (recipe.loss.min_snr_gamma, recipe.loss.noise_offset, train.seed) == (5, 0.05, 42)
    assert (recipe.output.precision, recipe.output.metadata, recipe.name) == ("fp32", False, "riho")
    assert (recipe.caption.caption_dropout_rate, train.save_every_n_epochs) == (0.1, 2)
    assert recipe.validation.split == 0.1
    assert leftovers(text) == {"max_train_steps": "99: kohya lets max_train_epochs win"}


@pytest.mark.parametrize("more", ["", "mid_lr_weight=1", "block_dims=DIMS"])
def test_blocks_of_convolutions_that_kohya_does_not_read(more: str) -> None:
    pictures(Path("set/2_a"), 1)
    arguments = ["conv_block_dims=DIMS", "conv_block_alphas=DIMS", *([more] if more else [])]
    text = 'train_data_dir = "set"\nnetwork_args = ' + json.dumps(arguments).replace("DIMS", ",".join(["2"] * 25))
    text, recipe = imported(config(text))
    assert recipe.network.conv_block_dims == (2,) * 25 and recipe.network.conv_block_alphas == (2,) * 25
    assert text.count("# kohya ignores it without block_dims or lr weights\n") == (0 if more else 2)


def test_kohyas_defaults_where_the_file_is_silent() -> None:
    pictures(Path("set/2_a"), 1)
    text, recipe = imported(config('train_data_dir = "set"'))
    train = recipe.train
    assert (train.learning_rate, train.steps, train.enable_bucket, train.latents) == (2e-6, 1600, False, "sample")
    assert (recipe.network.dim, recipe.network.alpha, recipe.output.precision) == (4, 1, "fp32")
    assert "next to nothing is learnt; 1e-4 is usual" in text


def test_only_one_rate_given_leaves_kohyas_default_to_the_other() -> None:
    pictures(Path("set/2_a"), 1)
    train = imported(config('train_data_dir = "set"\nunet_lr = 1e-4'))[1].train
    assert (train.unet_lr, train.text_encoder_lr) == (1e-4, 2e-6)
    train = imported(config('train_data_dir = "set"\nunet_lr = 1e-4\ntext_encoder_lr = 5e-5'))[1].train
    assert (train.unet_lr, train.text_encoder_lr) == (1e-4, 5e-5)


def test_what_has_no_counterpart_is_a_comment_with_its_value() -> None:
    pictures(Path("set/2_a"), 1)
    text, _ = imported(
        config("""
        train_data_dir = "set"
        xformers = true
        color_aug = true
        lowram = false
        optimizer_type = "DAdaptAdam"
        network_module = "lycoris.kohya"
        network_args = ["algo=loha", "convdim=4"]
        lr_warmup_steps = 10
        lerning_rate = 1e-4
        bucket_reso_steps = 32
        pretrained_model_name_or_path = "runwayml/stable-diffusion-v1-5"
        max_token_length = 77
        "odd\\nname" = "a\\nb"
        """)
    )
    left = leftovers(text)
    assert left["xformers"].startswith("true: lorac takes the fastest")
    assert left["color_aug"].startswith("true: ") and "lowram" not in left
    assert left["optimizer_type"].startswith('"DAdaptAdam": ') and "prodigy" in left["optimizer_type"]
    assert left["network_args: algo"].startswith('"loha": ')
    assert left["network_args: convdim"].endswith('did you mean "conv_dim"?')
    assert left["lerning_rate"] == '1e-4: kohya has no such setting and ignores it; did you mean "learning_rate"?'
    assert left["max_token_length"].startswith("77: lorac cannot take it for max_token_length in [train]; give one of")
    assert left["train.bucket_reso_steps"].startswith("32: ")
    assert "Hugging Face: download it" in text
    assert 'lr_scheduler = "constant_with_warmup"' in text


def test_sample_prompts_are_read() -> None:
    pictures(Path("set/2_a"), 1)
    lines = "# mine\n1girl, riho --n lowres --w 512 --h 768 --l 7.5 --s 28 --d 1\nriho, 海\n"
    Path("prompts.txt").write_text(lines, encoding="utf-8")
    sample = imported(config('train_data_dir = "set"\nsample_prompts = "prompts.txt"\nsample_sampler = "k_euler_a"'))[
        1
    ].sample
    assert [(p.prompt, p.negative) for p in sample.prompts] == [("1girl, riho", "lowres"), ("riho, 海", "")]  # type: ignore[union-attr]
    assert (sample.width, sample.height, sample.cfg_scale, sample.steps, sample.seed) == (512, 768, 7.5, 28, 1)


# -- what kohya takes and lorac refuses ------------------------------------------------------------


CONTRADICTIONS = {
    "zero snr": ("zero_terminal_snr = true", {"loss.zero_terminal_snr": "true"}),
    "v loss": ("scale_v_pred_loss_like_noise_pred = true", {"loss.scale_v_pred_loss_like_noise_pred": "true"}),
    "both": (
        "scale_v_pred_loss_like_noise_pred = true\nzero_terminal_snr = true",
        {"loss.scale_v_pred_loss_like_noise_pred": "true", "loss.zero_terminal_snr": "true"},
    ),
    "scheduler": ('lr_scheduler = "warmup_stable_decay"', {"train.lr_scheduler": '"warmup_stable_decay"'}),
    "one argument": (
        'optimizer_type = "Prodigy"\nlearning_rate = 1\noptimizer_args = ["d_coef=2", "use_speed=True"]',
        {"train.optimizer_args.use_speed": "true"},
    ),
    "length": ('max_train_steps = "x"\nlr_warmup_steps = 5000', {"max_train_steps": '"x"'}),
    "adafactor": ('optimizer_type = "Adafactor"\nunet_lr = 1e-4\nlr_scheduler = "cosine"', {"train.unet_lr": "1e-4"}),
    "name": ('output_name = "a?b"', {"output.name": '"a?b"'}),
    "huber": ("huber_c = 0.3", {"loss.huber_c": "0.3"}),
    "noise": ("adaptive_noise_scale = 0.3", {"loss.adaptive_noise_scale": "0.3"}),
    "lists": ('network_args = ["block_alphas=1,2"]', {"network.block_alphas": "[1.0, 2.0]"}),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_recipe_that_was_imported_can_be_planned(name: str) -> None:
    pictures(Path("set/2_a"), 1, "a", extension=".caption")
    lines, left = CONTRADICTIONS[name]
    text, recipe = imported(config(f'train_data_dir = "set"\n{lines}\n'))
    planned("made.toml")
    shown = leftovers(text)
    assert {key: shown[key].partition(":")[0] for key in left} == left
    assert recipe.train.optimizer_args == ({"d_coef": 2} if name == "one argument" else {})


@pytest.mark.parametrize(
    ("rates", "expected", "comment"),
    [
        ("learning_rate = 1e-4", (1, 1, 1), "kohya: learning_rate = 1e-4; prodigy finds one rate for all"),
        ("unet_lr = 1\ntext_encoder_lr = 0.5", (1, 1, 1), "kohya: unet_lr = 1.0, text_encoder_lr = 0.5; prodigy"),
        ("unet_lr = 1e-4\ntext_encoder_lr = 0", (1, 1, 0), "kohya: "),
        ("", (1, 1, 1), "kohya: learning_rate = 2e-6; prodigy"),
        ("learning_rate = 1", (1, 1, 1), None),
        ("learning_rate = 5\nunet_lr = 0.5\ntext_encoder_lr = 0.5", (5, 0.5, 0.5), None),
    ],
)
def test_prodigys_rate_is_one(rates: str, expected: tuple[float, ...], comment: str | None) -> None:
    pictures(Path("set/2_a"), 1, "a", extension=".caption")
    text, recipe = imported(config(f'train_data_dir = "set"\noptimizer_type = "Prodigy"\n{rates}\n'))
    planned("made.toml")
    assert (recipe.train.learning_rate, recipe.train.unet_lr, recipe.train.text_encoder_lr) == expected
    assert (comment or "learning_rate = ") in text and ("prodigy finds" in text) == (comment is not None)


def test_prodigy_of_a_lora_that_tells_no_rate() -> None:
    metadata = {"ss_network_dim": "8", "ss_optimizer": "prodigyopt.prodigy.Prodigy", "ss_max_train_steps": "9"}
    header = json.dumps({"__metadata__": metadata}).encode()
    Path("a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    pictures(Path("pictures"), 1)
    text, recipe = imported("a.safetensors")
    assert (recipe.train.optimizer, recipe.train.unet_lr, recipe.train.text_encoder_lr) == ("prodigy", 1, 1)
    assert "learning_rate = 1" in text


@pytest.mark.parametrize("says_v", [False, True])
def test_what_goes_with_the_base_that_is_named(tiny_base: Path, says_v: bool) -> None:
    """A base that says itself that it predicts v takes what another refuses."""
    pictures(Path("set/2_a"), 1, "a", extension=".caption")
    marks = {"v_pred": torch.empty(0)} if says_v else {}
    save_file({**load_file(tiny_base), **marks}, "基.safetensors")
    lines = 'pretrained_model_name_or_path = "基.safetensors"\nzero_terminal_snr = true\n'
    done = lorac("import", config(f'train_data_dir = "set"\n{lines}v_pred_like_loss = 0.5'))
    Path("made.toml").write_text(done.stdout, encoding="utf-8")
    assert lorac("plan", "made.toml").exit_code == 0
    assert ("zero_terminal_snr = true" in done.stdout.partition("# Not carried")[0]) == says_v
    assert ("v_pred_like_loss = 0.5" in done.stdout.partition("# Not carried")[0]) != says_v


def test_a_base_whose_word_contradicts_the_file(tiny_base: Path) -> None:
    """The base says zero SNR, but not v, which lorac refuses: the recipe says what kohya does without a word."""
    pictures(Path("set/2_a"), 1, "a", extension=".caption")
    save_file({**load_file(tiny_base), "ztsnr": torch.empty(0)}, "base.safetensors")
    config('train_data_dir = "set"\npretrained_model_name_or_path = "base.safetensors"\n')
    done = lorac("import", "config.toml")
    Path("made.toml").write_text(done.stdout, encoding="utf-8")
    assert lorac("plan", "made.toml").exit_code == 0
    assert "\nzero_terminal_snr = false" in done.stdout


# -- dataset configs -------------------------------------------------------------------------------


def test_a_dataset_configs_inheritance_and_what_subsets_disagree_on() -> None:
    pictures(Path("a"), 2, "riho")
    pictures(Path("b"), 1)
    text, recipe = imported(
        config("""
        [general]
        caption_extension = ".txt"
        keep_tokens = 1
        flip_aug = true
        [[datasets]]
        batch_size = 4
        keep_tokens = 2
        shuffle_captoin = true
        [[datasets.subsets]]
        image_dir = "a"
        num_repeats = 3
        alpha_mask = true
        [[datasets.subsets]]
        image_dir = "b"
        class_tokens = "hat"
        keep_tokens = 3
        caption_prefix = "rihohat, "
        """)
    )
    assert [(s.repeats, s.trigger, s.alpha_mask) for s in recipe.sources] == [
        (3, ("riho",), True),
        (1, ("rihohat", "hat"), False),
    ]
    assert (recipe.caption.keep_tokens, recipe.train.batch_size, recipe.train.flip_aug) == (2, 4, True)
    assert recipe.caption.shuffle_caption is False  # kohya's default wins over the preset
    assert leftovers(text)["b: keep_tokens"] == "3: lorac has one keep_tokens for all folders and took 2, the first's"
    assert leftovers(text)["datasets: shuffle_captoin"].endswith('did you mean "shuffle_caption"?')


def test_a_setting_that_the_first_folder_does_not_name_is_not_all_folders() -> None:
    """The first has kohya's default of it, which is what config_util.py gives the subset."""
    pictures(Path("a"), 2, "riho", extension=".caption")
    pictures(Path("b"), 1, "riho", extension=".caption")
    text, recipe = imported(
        config("""
        [[datasets]]
        resolution = 512
        [[datasets.subsets]]
        image_dir = "a"
        [[datasets.subsets]]
        image_dir = "b"
        caption_dropout_rate = 0.5
        enable_wildcard = true
        caption_suffix = "hat"
        color_aug = true
        resize_interpolation = "area"
        resolution = 768
        [[datasets]]
        resolution = [512, 512]
        batch_size = 4
        validation_split = 0.25
        min_bucket_reso = 256
        bucket_no_upscale = true
        [[datasets.subsets]]
        image_dir = "a"
        """)
    )
    caption = recipe.caption
    assert (caption.caption_dropout_rate, caption.enable_wildcard, caption.suffix) == (0.0, False, "")
    assert (recipe.train.batch_size, recipe.validation.split, recipe.train.bucket_no_upscale) == (1, 0.0, False)
    left = leftovers(text)
    assert left["b: caption_dropout_rate"].startswith("0.5: lorac has one caption_dropout_rate for all folders")
    assert left["b: caption_suffix"].endswith("and the first has none")
    assert left["datasets[1]: batch_size"].startswith("4: ") and left["subsets: resolution"].startswith("768: ")
    assert {name for name in left if name[0] in "bd"} == {
        *(f"b: {name}" for name in ("caption_dropout_rate", "enable_wildcard", "caption_suffix", "color_aug")),
        "b: resize_interpolation",
        *(f"datasets[1]: {name}" for name in ("batch_size", "validation_split", "bucket_no_upscale")),
    }
    assert "color_aug" not in left and "resize_interpolation" not in left


def test_class_tokens_and_buckets_that_a_dataset_config_means() -> None:
    """Class tokens are for pictures without a caption, which `a` and `1girl` have none of; buckets are off."""
    pictures(Path("a"), 2, "riho, hat", extension=".caption")
    pictures(Path("b"), 2)
    pictures(Path("c"), 2, "riho", extension=".caption")
    Path("c/000.caption").unlink()
    pictures(Path("1girl"), 1, "1girl", extension=".caption")
    subset = '[[datasets.subsets]]\nimage_dir = "{0}"\nclass_tokens = "{0} girl"\n'
    text = "[[datasets]]\n" + "".join(map(subset.format, ("a", "b", "1girl"))) + "is_reg = true\n"
    text, recipe = imported(config(text + subset.format("c") + 'caption_prefix = "riho, "\n'))
    left = leftovers(text)
    assert left["a: class_tokens"].startswith('"a girl": all its pictures have captions')
    assert left["1girl: class_tokens"].startswith('"1girl girl": all its pictures have captions')
    assert left["c: class_tokens"].startswith('"c girl": kohya trains it for 1 of 2 pictures, which have no')
    assert "b: class_tokens" not in left and recipe.sources[1].trigger == ("b girl",)
    assert recipe.train.enable_bucket is False and "enable_bucket = false" in text
    text, recipe = imported(config("[general]\nenable_bucket = true\n[[datasets]]\n" + subset.format("b")))
    assert recipe.train.enable_bucket is True and "command line" not in text


def test_a_dataset_config_goes_on_from_the_command_line() -> None:
    pictures(Path("a"), 2, "riho")
    config('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n', "data.toml")
    text = 'dataset_config = "data.toml"\ntrain_batch_size = 3\ndataset_repeats = 5\ncaption_extention = ".txt"\n'
    _, recipe = imported(config(text))
    assert (recipe.sources[0].repeats, recipe.train.batch_size, recipe.caption.extension) == (5, 3, ".txt")


def test_a_config_that_names_a_dataset_config() -> None:
    pictures(Path("a"), 2, "riho")
    config('[[datasets]]\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 7\n', "data.toml")
    text = 'dataset_config = "data.toml"\ntrain_data_dir = "x"\nmax_train_epochs = 2\nlearning_rate = 1e-4\n'
    text, recipe = imported(config(text + 'caption_extension = ".txt"\nshuffle_caption = true'))
    assert (recipe.sources[0].repeats, recipe.train.batch_size, recipe.train.epochs) == (7, 3, 2)
    assert recipe.caption.shuffle_caption and recipe.sources[0].trigger == ("riho",)
    assert "train_data_dir" in leftovers(text)


# -- the popup -------------------------------------------------------------------------------------


def test_older_and_newer_names_of_the_popup() -> None:
    pictures(Path("set/3_a"), 10, "a")
    old = {
        "img_folder": "set",
        "network_dim": 8,
        "alpha": 4,
        "lr_scheduler": "cosine",
        "num_epochs": 2,
        "batch_size": 4,
    }
    Path("old.json").write_text(json.dumps(old), encoding="utf-8")
    recipe = imported("old.json")[1]
    assert (recipe.network.dim, recipe.train.lr_scheduler, recipe.train.steps) == (8, "cosine", 30 // 4 * 2)
    assert recipe.caption.shuffle_caption is False and recipe.train.save_every_n_epochs == 0  # ArgStore's own defaults
    new = {"img_folder": "set", "num_epochs": 5, "persistent_workers": True, "save_every_n_epochs": 2, "use_lion": True}
    Path("new.json").write_text(json.dumps(new | {"use_8bit_adam": False, "max_steps": None}), encoding="utf-8")
    train = imported("new.json")[1].train
    assert (train.epochs, train.steps, train.save_every_n_epochs, train.optimizer) == (5, None, 2, "lion")


def test_what_the_popup_does_not_pass_on_and_does_not_know() -> None:
    pictures(Path("set/3_a"), 1, "a")
    changes = {"text_encoder_lr": 0, "gradient_acc_steps": 4, "keep_tokns": 1, "color_aug": True}
    text, recipe = imported(popup_json("set", None, **changes))
    assert recipe.train.text_encoder_lr == 1e-4 and recipe.train.gradient_accumulation_steps == 1
    left = leftovers(text)
    assert left["keep_tokns"] == '1: the popup has no such setting and ignores it; did you mean "keep_tokens"?'
    assert left["output_folder"].startswith('"E:\\\\out": ') and left["color_aug"].startswith("true: ")
    assert 'with CUDA and bitsandbytes write "adamw8bit"' in text


# -- a finished LoRA -------------------------------------------------------------------------------


def test_what_a_lora_tells_of_itself() -> None:
    metadata = {
        "ss_network_dim": "32",
        "ss_network_alpha": "16.0",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "None",
        "ss_lr_scheduler": "cosine",
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
        "ss_max_train_steps": "2808",
        "ss_resolution": "(512, 512)",
        "ss_enable_bucket": "True",
        "ss_clip_skip": "2",
        "ss_sd_model_name": "nai.ckpt",
        "ss_dataset_dirs": '{"36_riho": {"n_repeats": 36, "img_count": 13}}',
        "ss_reg_dataset_dirs": '{"1_1girl": {"n_repeats": 1, "img_count": 400}}',
        "ss_network_args": '{"conv_dim": "4"}',
    }
    header = json.dumps({"__metadata__": metadata}).encode()
    Path("riho.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    done = lorac("import", "riho.safetensors", "-o", "riho.toml")
    assert "pictures/36_riho" in done.stderr
    article_set(Path("pictures"), "head")
    pictures(Path("pictures/1_1girl"), 400)
    (recipe,) = load([Path("riho.toml")], base="builtin:mini")
    assert (recipe.network.dim, recipe.network.alpha, recipe.network.conv_dim) == (32, 16, 4)
    assert (recipe.train.steps, recipe.train.clip_skip, recipe.train.weight_decay) == (2808, 2, 0.1)
    assert recipe.train.betas == (0.9, 0.99)
    assert "468 regularisation samples beside 468" in planned("riho.toml", "--set", 'source[0].alpha="white"')


def test_a_lora_of_a_dataset_config() -> None:
    subsets = [
        {"image_dir": "riho", "num_repeats": 36, "class_tokens": "riho", "is_reg": False, "keep_tokens": 2},
        {"image_dir": "1girl", "num_repeats": 1, "class_tokens": "1girl", "is_reg": True},
    ]
    metadata = {"ss_network_dim": "8", "ss_datasets": json.dumps([{"batch_size_per_device": 3, "subsets": subsets}])}
    metadata |= {"ss_dataset_dirs": '{"riho": {"n_repeats": 36, "img_count": 1}}', "ss_max_train_steps": "9"}
    header = json.dumps({"__metadata__": metadata}).encode()
    Path("a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    pictures(Path("pictures/riho"), 1)
    pictures(Path("pictures/1girl"), 1)
    _, recipe = imported("a.safetensors")
    assert [(Path(s.path).name, s.repeats, s.trigger) for s in recipe.sources] == [("riho", 36, ("riho",))]
    assert (recipe.train.batch_size, recipe.caption.keep_tokens, recipe.train.steps) == (3, 2, 9)
    assert [(Path(s.path).name, s.caption) for s in recipe.regularisation] == [("1girl", "1girl")]


# -- refusals --------------------------------------------------------------------------------------


def test_an_existing_recipe_is_not_replaced_without_force() -> None:
    pictures(Path("set/3_a"), 1)
    Path("mine.toml").write_text("# mine", encoding="utf-8")
    assert refused("import", "set", "-o", "mine.toml") == ["mine.toml: is there already; give --force to replace it"]
    assert Path("mine.toml").read_text(encoding="utf-8") == "# mine"
    done = lorac("import", "set", "-o", "mine.toml", "--force")
    assert done.exit_code == 0 and done.stdout == "" and "wrote mine.toml" in done.stderr
    assert b"\r" not in Path("mine.toml").read_bytes()
    assert refused("import", "set", "-o", "none/mine.toml")[0].startswith("none/mine.toml: cannot be written")


def test_bad_input_is_answered_all_at_once() -> None:
    pictures(Path("set/x"), 1)
    pictures(Path("good/2_a"), 1)
    Path("reg").mkdir()
    assert refused("import", "sett")[0] == '"sett" does not exist; did you mean "set"?'
    assert [message.partition(":")[0] for message in refused("import", "set", "--reg", "reg")] == ["set", "reg"]
    Path("a.txt").write_text("", encoding="utf-8")
    assert refused("import", "a.txt")[0].startswith("a.txt: lorac cannot import this kind of file; give a kohya")
    assert refused("import", config("a = [1"))[0].startswith("config.toml:1: not TOML")
    assert refused("import", config("a = 1"))[0].startswith("config.toml: names neither train_data_dir nor dataset")
    Path("b.json").write_text("{", encoding="utf-8")
    assert refused("import", "b.json")[0].startswith("b.json: is not JSON")
    Path("b.json").write_text("[]", encoding="utf-8")
    assert refused("import", "b.json")[0].startswith("b.json: names no img_folder")
    subsets = "[[datasets]]\n[[datasets.subsets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 0\n[[datasets]]"
    assert len(refused("import", config(subsets))) == 3


def test_damaged_pictures_and_odd_values_break_nothing() -> None:
    pictures(Path("set/2_a"), 1)
    Path("set/2_a/broken.png").write_bytes(b"no picture")
    Path("set/2_a/broken.txt").write_bytes(b"\xff\xfe")
    Path("x").touch()
    values = ["1", "true", '""', "[]", "{}", "-1", "1e400", '"x"', "1979-05-27", "[[1], {a = 1}]", "nan"]
    for number, value in enumerate(values):
        rows = "".join(f"{name} = {value}\n" for name in ARGUMENTS if name not in PICTURE_ARGUMENTS)
        imported(config(f'train_data_dir = "set"\n{rows}', f"{number}.toml"))
    assert set(NETWORK_UNSUPPORTED).isdisjoint(NETWORK_SAME)


def test_pictures_beside_the_folders_are_named_and_a_folder_too_deep_is_led_up() -> None:
    article_set(Path("train"), "head")
    pictures(Path("train"), 2)
    assert leftovers(imported("train")[0])["pictures"] == '"2 in train itself": kohya reads its sub-folders only'
    (message,) = refused("import", "train/36_riho")
    assert message.endswith("; give the folder around it, train")
