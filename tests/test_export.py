"""Exported files: read by diffusers, by the safetensors library, and by rules taken from the web UIs' source."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors
import safetensors.torch
import torch

from lorac.errors import TrainingDiverged
from lorac.export import facts_for_sidecar, lora_file, sidecar
from lorac.metadata import Facts, Folder, metadata
from lorac.recipe.optimisers import OPTIMISERS
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.schema import SECTIONS, keys
from lorac.recipe.sections.data import Caption, Tagger
from lorac.recipe.sections.loss import Loss
from lorac.recipe.sections.network import Network
from lorac.recipe.sections.output import Check, Evaluate, Output, Sample
from lorac.recipe.sections.train import Train, Validation
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.tokenizer import chunk
from lorac.train.schedule import Summary
from tests.loras import delta, fill
from tests.running import lorac
from tests.small import base, diffusers_unet, transformers_text_model

RECIPE = Recipe(
    name="riho",
    file=Path("riho.toml"),
    sources=(PictureSet("/home/me/36_riho", 36, "white", "riho.toml:3", trigger=("izumi riho", "idol")),),
    regularisation=(),
    caption=Caption(shuffle_caption=True, keep_tokens=1),
    tagger=Tagger(),
    network=Network(dim=4, alpha=2.0),
    train=Train(epochs=3, text_encoder_lr=5e-5, unet_lr=1e-4, max_token_length=150),
    loss=Loss(),
    validation=Validation(),
    sample=Sample(),
    evaluate=Evaluate(),
    check=Check(),
    output=Output(name="riho", comment="リホの頭, v1", preferred_weight=0.7, negative="blurry", notes="head only"),
)
FACTS = Facts(
    base_name="mini.safetensors",
    base_hash="ab" * 32,
    resolution=128,
    bucket_sides=(80, 240),
    clip_skip=2,
    warmup_steps=28,
    summary=Summary(468, 468, 936, 2808, 3, (108.0, 3.5), 0),
    epoch=3,
    steps=2808,
    folders=(
        Folder("36_riho", 36, 13, regularisation=False, tags={"smile": 5, "blue eyes": 13, "a": 5}),
        Folder("1_girls", 1, 400, regularisation=True, tags={"1girl": 400}),
    ),
    buckets={(128, 128): 800, (96, 160): 136},
    recipe_hash="cd" * 32,
)


SETTINGS = {
    "plain": NetworkSettings(4, 2.0),
    "rslora": NetworkSettings(8, 2.0, rslora=True),
    "locon": NetworkSettings(4, 2.0, conv_dim=2, conv_alpha=1.0),
    "blocks": NetworkSettings(4, 2.0, block_dims=(0, 3) + (0, 2) * 11 + (5,), block_alphas=(0.5,) * 25),
}


def trained(seed: int = 5, settings: NetworkSettings = SETTINGS["plain"]) -> tuple[Any, Any, LoRANetwork]:
    """A base with a LoRA whose factors are as after training."""
    unet, text_encoder = base()
    lora = LoRANetwork(unet, text_encoder, settings)
    fill(lora, seed, 0.1)
    return unet, text_encoder, lora


@pytest.fixture(scope="module")
def exported() -> bytes:
    return lora_file(trained()[2].state(), metadata(RECIPE, FACTS), "fp32")


@pytest.mark.parametrize("kind", SETTINGS)
def test_diffusers_loads_the_file_and_gives_our_output(kind: str, tmp_path: Path) -> None:
    """Its own `load_lora_weights`, U-Net and text encoder."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    path = tmp_path / "riho.safetensors"
    unet, text_encoder, lora = trained(settings=SETTINGS[kind])
    path.write_bytes(lora_file(lora.state(), {}, "fp32"))
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    ids = torch.tensor(chunk(list(range(1000, 1100)), 150))
    with torch.no_grad():
        states = text_encoder(ids)
        ours = unet(x, t, states)
        lora.detach()
        bare_states = text_encoder(ids)
        bare = unet(x, t, states)
        pipeline = StableDiffusionPipeline(
            unet=diffusers_unet(unet),
            text_encoder=transformers_text_model(text_encoder),
            scheduler=DDPMScheduler(clip_sample=False),
            vae=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.load_lora_weights(path)
        their_states = pipeline.text_encoder(ids).last_hidden_state
        expected = pipeline.unet(x, t, their_states).sample
    assert (states - bare_states).norm() > 0.05 * bare_states.norm()
    assert (ours - bare).norm() > 0.05 * bare.norm()
    assert (states - their_states).norm() <= 1e-4 * their_states.norm()
    assert (ours - expected).norm() <= 1e-4 * expected.norm()


def test_a_dora_file_means_to_web_uis_what_was_trained(tmp_path: Path) -> None:
    """The weight that A1111, Forge, InvokeAI and ComfyUI compute from the file is the one that our layers have."""
    settings = NetworkSettings(4, 2.0, dora=True, rslora=True, conv_dim=2)
    unet, text_encoder = base()
    lora = LoRANetwork(unet, text_encoder, settings)
    fill(lora)
    file = safetensors.torch.load(lora_file(lora.state() | {"updates": torch.zeros(())}, {}, "fp32"))
    suffixes = {name.partition(".")[2] for name in file}
    assert suffixes == {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"}
    assert len(file) == 4 * 350
    for adapter in lora.adapters()[::7]:
        name, target = adapter.target.name, adapter.target
        layer: Any = {"unet": unet, "text_encoder": text_encoder}[target.part].get_submodule(target.path)
        weight = layer.weight.double()
        # apply_weight_decompose (A1111), weight_decompose (ComfyUI, Forge), DoRALayer (InvokeAI)
        merged = weight + delta(file, name).view(weight.shape)
        norm = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
        norm = norm.reshape(merged.shape[1], *[1] * (merged.dim() - 1)).transpose(0, 1)
        scale = file[f"{name}.dora_scale"].double()
        assert scale.shape[0] == 1 != merged.shape[0], "ComfyUI would take it for one of rows"
        expected = merged * (scale / norm)
        x = torch.randn(2, 3, *weight.shape[1:2]) if weight.dim() == 2 else torch.randn(2, weight.shape[1], 5, 4)
        if isinstance(layer, torch.nn.Conv2d):
            theirs = torch.nn.functional.conv2d(x.double(), expected, None, layer.stride, layer.padding)
        else:
            x = x.flatten(2).mT if x.dim() == 4 else x
            theirs = x.double() @ expected.flatten(1).T
        with torch.no_grad():
            ours = layer(x).double()
        if layer.bias is not None:
            theirs += layer.bias.double().view(-1, *[1] * (ours.dim() - 2) * isinstance(layer, torch.nn.Conv2d))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_diffusers_takes_a_dora_file_without_its_magnitudes() -> None:
    """Its loader of kohya's names drops `dora_scale` and says so; nothing here can change that."""
    from diffusers import StableDiffusionPipeline

    lora = LoRANetwork(*base(), NetworkSettings(4, 2.0, dora=True))
    found, _ = StableDiffusionPipeline.lora_state_dict(safetensors.torch.load(lora_file(lora.state(), {}, "fp32")))
    assert len(found) == 264 * 2 and not any("magnitude" in name or "dora" in name for name in found)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_alpha_that_is_rounded_keeps_its_scale(precision: Any) -> None:
    lora = LoRANetwork(*base(), NetworkSettings(3, 0.7, rslora=True))
    state = fill(lora)
    file = safetensors.torch.load(lora_file(lora.state(), {}, precision))
    name = "lora_unet_mid_block_attentions_0_proj_in"
    assert file[f"{name}.alpha"] != state[f"{name}.alpha"]
    ours, theirs = delta(state, name), delta(file, name)
    assert abs((theirs * ours).sum() / (ours * ours).sum() - 1) < 2e-4


def test_the_table_holds_792_tensors_and_nothing_else(exported: bytes) -> None:
    tensors = safetensors.torch.load(exported)
    assert len(tensors) == 264 * 3
    assert {name.rpartition(".")[0].removesuffix(".lora_down").removesuffix(".lora_up") for name in tensors}
    alphas = [tensor for name, tensor in tensors.items() if name.endswith(".alpha")]
    assert len(alphas) == 264
    assert all(alpha.shape == () and alpha.item() == 2.0 for alpha in alphas)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_precision_holds_for_alphas_too(precision: Any, dtype: torch.dtype) -> None:
    state = trained()[2].state() | {"exp_avg/x": torch.zeros(3), "step": torch.tensor(5)}
    tensors = safetensors.torch.load(lora_file(state, {}, precision))
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert tensors.keys() == trained()[2].state().keys()


def test_values_beyond_fp16_are_an_error_with_a_remedy() -> None:
    state = {"lora_unet_x.lora_up.weight": torch.tensor([1e5])}
    with pytest.raises(TrainingDiverged, match=r'lora_unet_x\.lora_up\.weight.*output\.precision to "fp32"'):
        lora_file(state, {}, "fp16")
    assert lora_file(state, {}, "fp32")
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        lora_file({"lora_unet_x.lora_up.weight": torch.tensor([torch.nan])}, {}, "fp32")


def test_hashes_are_of_everything_after_the_header(exported: bytes) -> None:
    texts = header(exported)
    start = 8 + int.from_bytes(exported[:8], "little")
    digest = hashlib.sha256(exported[start:]).hexdigest()
    assert texts["sshs_model_hash"] == digest
    assert texts["modelspec.hash_sha256"] == f"0x{digest}"


def header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    fields: dict[str, Any] = json.loads(data[8 : 8 + length])
    texts: dict[str, str] = fields["__metadata__"]
    return texts


def as_a1111_reads(data: bytes) -> dict[str, Any]:
    """modules/sd_models.py, read_metadata_from_safetensors."""
    assert data[8:10] in (b'{"', b"{'")
    values: dict[str, Any] = {}
    for key, value in header(data).items():
        assert isinstance(value, str)
        values[key] = json.loads(value) if value[0:1] == "{" else value
    return values


def test_web_uis_find_what_they_show(exported: bytes) -> None:
    values = as_a1111_reads(exported)
    assert values["ss_output_name"] == "riho"
    assert values["ss_network_dim"] == "4"
    assert values["ss_network_alpha"] == "2.0"
    assert values["ss_dataset_dirs"] == {"36_riho": {"n_repeats": 36, "img_count": 13}}
    assert values["ss_reg_dataset_dirs"] == {"1_girls": {"n_repeats": 1, "img_count": 400}}
    assert list(values["ss_tag_frequency"]["36_riho"].items()) == [("blue eyes", 13), ("a", 5), ("smile", 5)]
    assert values["ss_bucket_info"]["buckets"]["0"] == {"resolution": [96, 160], "count": 136}
    assert values["ss_clip_skip"] == "2"
    assert values["ss_num_train_images"] == "468"
    assert values["ss_num_reg_images"] == "400"
    assert values["ss_max_token_length"] == "150"
    assert values["ss_v2"] == "False"
    # Forge decides by this one, managers look for the trigger.
    assert values["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert values["modelspec.trigger_phrase"] == "izumi riho, idol"
    assert values["ss_training_comment"] == "リホの頭, v1"


MARKS = {"keep_tokens_separator": "|||", "enable_wildcard": True}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("best ||| {x|y}", "izumi riho, idol, best, x"),
        ("{best|good} quality, Idol", "izumi riho, idol, best quality"),
        ("{{smile}}", "izumi riho, idol, {smile}"),
    ],
)
def test_the_trigger_phrase_is_one_way_to_show_it(prefix: str, expected: str) -> None:
    recipe = replace(RECIPE, caption=Caption(prefix=prefix, **MARKS))  # type: ignore[arg-type]
    assert metadata(recipe, FACTS)["modelspec.trigger_phrase"] == expected
    assert json.loads(facts_for_sidecar(recipe, FACTS))["activation text"] == expected
    plain = replace(RECIPE, caption=Caption(prefix=prefix))
    assert metadata(plain, FACTS)["modelspec.trigger_phrase"].startswith("izumi riho, idol, " + prefix[:4])


def test_tags_are_counted_as_pictures_show_them(built_copy: Path) -> None:
    """One picture of two lines, one with a mark and choices, and one that is left as it is."""
    texts = ["smile\nsmile, hat, {red|Red}", "red hair ||| {blue|green} eyes, hat"]
    for file, text in zip(sorted(Path("pictures").glob("*.txt")), texts, strict=False):
        file.write_text(text, encoding="utf-8")
    sets = [f"caption.{key}={str(value).lower()}" for key, value in MARKS.items()]
    done = lorac("build", "recipe.toml", *[word for text in sets for word in ("--set", text)])
    assert done.exit_code == 0, done.output
    counts = as_a1111_reads(Path("build/recipe/recipe.safetensors").read_bytes())["ss_tag_frequency"]["pictures"]
    own = {"smile": 2, "hat": 2, "red": 1, "red hair": 1, "blue eyes": 1, "green eyes": 1, "izumi riho": 3}
    assert {tag: count for tag, count in counts.items() if "colour" not in tag and "thing" not in tag} == own


def test_equal_facts_give_equal_bytes_without_time_or_place(exported: bytes) -> None:
    assert lora_file(trained()[2].state(), metadata(RECIPE, FACTS), "fp32") == exported
    text = json.dumps(header(exported))
    assert "/home/me" not in text
    assert not [
        key for key in header(exported) if "time" in key or "date" in key or "started" in key or "session" in key
    ]


def test_an_alias_cannot_break_the_prompt_syntax() -> None:
    recipe = replace(RECIPE, output=Output(name="a:b>c,d"))
    assert metadata(recipe, FACTS)["ss_output_name"] == "a_b_c_d"


def test_without_metadata_nothing_about_the_pictures_is_written() -> None:
    recipe = replace(RECIPE, output=Output(name="riho", metadata=False))
    needed = {
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.prediction_type",
        "modelspec.sai_model_spec",
        "modelspec.title",
        "ss_base_model_version",
        "ss_network_alpha",
        "ss_network_dim",
        "ss_network_module",
        "ss_v2",
    }
    assert set(metadata(recipe, FACTS)) == needed
    network = Network(dim=4, alpha=2.0, conv_dim=2)
    assert set(metadata(replace(recipe, network=network), FACTS)) == needed | {"ss_network_args"}


def test_tags_are_left_out_on_demand() -> None:
    recipe = replace(RECIPE, output=Output(name="riho", tag_frequency=False))
    texts = metadata(recipe, FACTS)
    assert texts.keys() == metadata(RECIPE, FACTS).keys() - {"ss_tag_frequency"}
    assert "smile" not in json.dumps(texts)


KOHYA = Path(__file__).parent / "cases" / "kohya_metadata.txt"
"""The metadata of a file that sd-scripts 48d368fa wrote for SD1.5: `name = value`."""
NOT_WRITTEN = {
    # Times, machines and random numbers: equal builds would give different bytes.
    "modelspec.date",
    "modelspec.implementation_version",
    "ss_sd_scripts_commit_hash",
    "ss_session_id",
    "ss_training_finished_at",
    "ss_training_started_at",
    # Nothing that lorac has.
    "ss_color_aug",
    "ss_face_crop_aug_range",
    "ss_random_crop",
    "ss_resize_interpolation",
    "ss_max_validation_steps",
    "ss_validate_every_n_epochs",
    "ss_validate_every_n_steps",
    # How a run was computed, which may differ from machine to machine.
    "ss_cache_latents",
    "ss_fp8_base",
    "ss_fp8_base_unet",
    "ss_full_fp16",
    "ss_gradient_checkpointing",
    "ss_lowram",
    "ss_mixed_precision",
    # Given up by web UIs long ago: of 64 kB of the base, and of the file.
    "ss_sd_model_hash",
    "sshs_legacy_hash",
}


def test_all_that_sd_scripts_writes_is_written_or_left_out_on_purpose() -> None:
    lines = KOHYA.read_text("utf-8").splitlines()
    theirs = dict(line.split(" = ", 1) for line in lines)
    ours = header(lora_file({"lora_unet_x.alpha": torch.tensor(2.0)}, metadata(RECIPE, FACTS), "fp16"))
    assert theirs.keys() - ours.keys() == NOT_WRITTEN
    assert ours.keys() - theirs.keys() == {
        "lorac.recipe_hash",
        "modelspec.description",
        "modelspec.encoder_layer",
        "modelspec.hash_sha256",
        "modelspec.trigger_phrase",
    }


def test_defaults_are_spelt_as_sd_scripts_spells_them() -> None:
    """Its file was written with defaults too, but for what the run decides."""
    theirs = dict(line.split(" = ", 1) for line in KOHYA.read_text("utf-8").splitlines())
    recipe = replace(RECIPE, caption=Caption(), network=Network(), train=Train(epochs=1), output=Output(name="riho"))
    ours = metadata(recipe, FACTS)
    decided = {
        *("modelspec.resolution", "modelspec.title", "ss_batch_size_per_device", "ss_bucket_info", "ss_clip_skip"),
        *("ss_dataset_dirs", "ss_enable_bucket", "ss_epoch", "ss_lr_warmup_steps", "ss_max_bucket_reso"),
        *("ss_max_train_steps", "ss_min_bucket_reso", "ss_network_alpha", "ss_network_dim", "ss_new_sd_model_hash"),
        *("ss_num_batches_per_epoch", "ss_num_epochs", "ss_num_reg_images", "ss_num_train_images", "ss_output_name"),
        *("ss_reg_dataset_dirs", "ss_resolution", "ss_sd_model_name", "ss_seed", "ss_steps", "ss_tag_frequency"),
    }
    same = (theirs.keys() & ours.keys()) - decided
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert len(same) > 35


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in ("source", "regularisation")])
def test_each_setting_is_told_under_the_name_in_the_schemas_table(section: str) -> None:
    """A value that no default has comes through as it stands."""
    odd: dict[str, Any] = {}
    for name, about in keys(SECTIONS[section]).items():
        default = getattr(getattr(RECIPE, section), name)
        if about["metadata"]:
            odd[name] = not default if isinstance(default, bool) else "odd" if isinstance(default, str) else 37
    recipe = replace(RECIPE, **{section: msgspec.structs.replace(getattr(RECIPE, section), **odd)})
    texts = metadata(recipe, FACTS)
    assert {name: texts[keys(SECTIONS[section])[name]["metadata"]] for name in odd} == {
        name: str(value) for name, value in odd.items()
    }


def test_network_arguments_are_kohyas() -> None:
    network = Network(
        dim=4,
        conv_dim=2,
        conv_alpha=1.5,
        rank_dropout=0.1,
        block_dims=(1,) * 25,
        down_lr_weight=(0.0,) * 11 + (1.0,),
        mid_lr_weight=0.5,
    )
    train = Train(epochs=1, loraplus_lr_ratio=16.0)
    texts = metadata(replace(RECIPE, network=network, train=train), FACTS)
    assert texts["ss_network_module"] == "networks.lora"
    assert json.loads(texts["ss_network_args"]) == {
        "conv_dim": "2",
        "conv_alpha": "1.5",
        "rank_dropout": "0.1",
        "block_dims": ",".join("1" * 25),
        "down_lr_weight": "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0",
        "mid_lr_weight": "0.5",
        "loraplus_lr_ratio": "16.0",
    }
    assert "ss_network_args" not in metadata(RECIPE, FACTS)


def test_dora_is_lycoriss_to_kohya() -> None:
    texts = metadata(replace(RECIPE, network=Network(dora=True, rslora=True)), FACTS)
    assert texts["ss_network_module"] == "lycoris.kohya"
    arguments = json.loads(texts["ss_network_args"])
    assert arguments == {"rs_lora": "True", "algo": "lora", "dora_wd": "True", "wd_on_output": "False"}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_optimiser_is_its_class_and_what_was_given_to_it(name: Any) -> None:
    path = OPTIMISERS[name].path
    module, _, cls = path.rpartition(".")
    # As get_optimizer of train_util.py names it: the module that the class says it is from.
    found = getattr(pytest.importorskip(module), cls)
    assert f"{found.__module__}.{found.__name__}" == path
    plain = metadata(replace(RECIPE, train=Train(epochs=1, optimizer=name)), FACTS)["ss_optimizer"]
    assert plain == path
    train = Train(epochs=1, optimizer=name, weight_decay=0.1, betas=(0.9, 0.99), optimizer_args={"d_coef": 2})
    given = metadata(replace(RECIPE, train=train), FACTS)["ss_optimizer"]
    assert given == f"{path}(weight_decay=0.1,betas=(0.9, 0.99),d_coef=2)"


def test_what_the_base_predicts_is_told() -> None:
    texts = metadata(RECIPE, replace(FACTS, v_parameterization=True, zero_terminal_snr=True))
    assert (texts["modelspec.prediction_type"], texts["ss_zero_terminal_snr"]) == ("v", "True")
    assert metadata(RECIPE, FACTS)["modelspec.prediction_type"] == "epsilon"


def test_batches_of_accumulated_steps_count_as_kohya_counts_them() -> None:
    train = Train(epochs=1, batch_size=2, gradient_accumulation_steps=3)
    texts = metadata(replace(RECIPE, train=train), FACTS)
    assert (texts["ss_batch_size_per_device"], texts["ss_total_batch_size"]) == ("2", "6")


def test_the_header_stays_below_what_comfyui_shows() -> None:
    many = {f"a rather long tag with ünïcödé and number {i}": i for i in range(50_000)}
    folders = tuple(Folder(f"{i}_x", i, 9, regularisation=False, tags=many) for i in range(1, 5))
    data = lora_file(trained()[2].state(), metadata(RECIPE, replace(FACTS, folders=folders)), "fp16")
    assert int.from_bytes(data[:8], "little") < 2**20
    kept = as_a1111_reads(data)["ss_tag_frequency"]
    assert set(kept) == {"1_x", "2_x", "3_x", "4_x"}
    assert max(kept["1_x"].values()) == 49_999
    with pytest.raises(safetensors.SafetensorError):  # the library agrees that it is a whole file
        safetensors.torch.load(data[:-1])
    assert len(safetensors.torch.load(data)) == 792


def test_the_sidecar_has_the_web_uis_keys() -> None:
    facts = facts_for_sidecar(RECIPE, FACTS)
    assert json.loads(sidecar(facts, 0.7, "blurry", "head only")) == {
        "description": "リホの頭, v1",
        "sd version": "SD1",
        "activation text": "izumi riho, idol",
        "preferred weight": 0.7,
        "negative text": "blurry",
        "notes": "head only\nlorac recipe cdcdcdcdcdcd, base mini.safetensors (abababababab)",
    }
    bare = json.loads(sidecar(facts, None, "", ""))
    assert (bare["preferred weight"], bare["notes"].partition(" ")[0]) == (0.0, "lorac")
