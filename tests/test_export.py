"""Exported files: read by diffusers, by the safetensors library, and by rules taken from the web UIs' source."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from lorac.errors import TrainingDiverged
from lorac.export import Facts, Folder, lora_file, metadata, sidecar
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.schema import Caption, Loss, Network, Output, Sample, Tagger, Train, Validation
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.tokenizer import chunk
from lorac.train.schedule import Summary
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


def trained(seed: int = 5) -> tuple[Any, Any, LoRANetwork]:
    """A base with a LoRA whose factors are as after training."""
    unet, text_encoder = base()
    lora = LoRANetwork(unet, text_encoder, NetworkSettings(4, 2.0), merged=True)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor if tensor.dim() == 0 else (torch.randn(tensor.shape, generator=generator) * 0.1)
        for name, tensor in sorted(lora.state().items())
    }
    lora.load_state(state)
    return unet, text_encoder, lora


@pytest.fixture(scope="module")
def exported() -> bytes:
    return lora_file(trained()[2].state(), metadata(RECIPE, FACTS), "fp32")


def test_diffusers_loads_the_file_and_gives_our_output(exported: bytes, tmp_path: Path) -> None:
    """Its own `load_lora_weights`, U-Net and text encoder."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    path = tmp_path / "riho.safetensors"
    path.write_bytes(exported)
    unet, text_encoder, lora = trained()
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
    texts = metadata(recipe, FACTS)
    assert set(texts) == {
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
    fields = json.loads(sidecar(RECIPE, FACTS))
    assert fields == {
        "description": "リホの頭, v1",
        "sd version": "SD1",
        "activation text": "izumi riho, idol",
        "preferred weight": 0.7,
        "negative text": "blurry",
        "notes": "head only\nlorac recipe cdcdcdcdcdcd, base mini.safetensors (abababababab)",
    }
    assert json.loads(sidecar(replace(RECIPE, output=Output(name="x")), FACTS))["preferred weight"] == 0.0
