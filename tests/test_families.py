"""What is no base is refused by its name, from headers alone, before anything is built."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorac.errors import InputError
from lorac.recipe.base import base_facts, vae_path
from lorac.sd.config import METADATA_KEY
from tests import fullsize
from tests.running import contents, refused
from tests.test_formats import SMALL

State = dict[str, Tensor]

UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], bool, str]] = {
    # name: (tensors, whether a whole SD1.x checkpoint is around them, what is said)
    "sdxl": ({"conditioner.embedders.0.transformer.x": (1,)}, True, "an SDXL checkpoint"),
    "sdxl unet": ({f"{UNET}label_emb.0.0.weight": (1, 1)}, True, "an SDXL checkpoint"),
    "sd2": ({"cond_stage_model.model.ln_final.weight": (1,)}, True, r"an SD2\.x checkpoint"),
    "sd2 by its context": ({CONTEXT: (320, 1024)}, True, r"an SD2\.x checkpoint"),
    "sd3": ({f"{UNET}joint_blocks.0.x_block.x": (1,)}, False, "an SD3 checkpoint"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (1,)}, False, "a Flux checkpoint"),
    "inpainting": ({f"{UNET}input_blocks.0.0.weight": (32, 9, 3, 3)}, True, "an inpainting checkpoint"),
    "pix2pix": ({f"{UNET}input_blocks.0.0.weight": (32, 8, 3, 3)}, True, "an instruct-pix2pix checkpoint"),
    "seven": ({f"{UNET}input_blocks.0.0.weight": (32, 7, 3, 3)}, True, "a checkpoint whose U-Net takes 7 channels"),
    "kohya lora": ({"lora_unet_mid_block_x.lora_down.weight": (4, 8)}, False, "a LoRA, not a base"),
    "diffusers lora": ({"unet.mid_block.x.lora.down.weight": (4, 8)}, False, "a LoRA, not a base"),
    "peft lora": ({"base_model.model.x.lora_A.weight": (4, 8)}, False, "a LoRA, not a base"),
    "loha": ({"lora_unet_mid_block_x.hada_w1_a": (4, 8)}, False, "a LyCORIS file, not a base"),
    "lokr": ({"lycoris_unet_x.lokr_w1": (4, 8)}, False, "a LyCORIS file, not a base"),
    "a1111 embedding": ({"emb_params": (4, 768)}, False, r"an embedding \(textual inversion\)"),
    "diffusers embedding": ({"<riho>": (768,)}, False, r"an embedding \(textual inversion\)"),
    "sdxl embedding": ({"clip_g": (4, 1280), "clip_l": (4, 768)}, False, r"an embedding \(textual inversion\)"),
    "controlnet": ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, False, "a ControlNet, not a base"),
    "diffusers controlnet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3)}, False, "a ControlNet, not a base"),
    "vae": ({"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}, False, "a VAE, not a base"),
    "ldm vae": ({"first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3)}, False, "a VAE, not a base"),
    "diffusers unet": (
        {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
        False,
        "the U-Net of a diffusers folder",
    ),
    "clip": ({"text_model.final_layer_norm.weight": (768,)}, False, "a text encoder alone"),
}


def named(shapes: dict[str, tuple[int, ...]]) -> State:
    return {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}


def write_other(name: str, base: Path, path: Path) -> str:
    """Write the file; returns what is said of it."""
    shapes, around, said = OTHERS[name]
    save_file({**(load_file(base) if around else {}), **named(shapes)}, path)
    return said


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused_by_name(tiny_base: Path, tmp_path: Path, name: str) -> None:
    said = write_other(name, tiny_base, tmp_path / "別.safetensors")
    with pytest.raises(InputError, match=f"別.safetensors: this is {said}.*; .*(SD1.x checkpoint|train.vae)") as error:
        base_facts(str(tmp_path / "別.safetensors"), "recipe.toml:3")
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_verbs_refuse_them_before_anything_is_built(built_copy: Path, tiny_base: Path, verb: str) -> None:
    said = write_other("sdxl", tiny_base, built_copy / "別.safetensors")
    before = contents(built_copy)
    (message,) = refused(verb, "recipe.toml", "--base", "別.safetensors")
    assert message == f"別.safetensors: this is {said}; lorac needs an SD1.x checkpoint as the base"
    assert {name: c for name, c in contents(built_copy).items() if ".lorac" not in name} == {
        name: c for name, c in before.items() if ".lorac" not in name
    }


@pytest.mark.parametrize("name", ["sdxl", "kohya lora", "inpainting"])
def test_pickles_are_refused_by_the_same_names_when_they_are_read(built_copy: Path, tiny_base: Path, name: str) -> None:
    shapes, around, said = OTHERS[name]
    torch.save({"state_dict": {**(load_file(tiny_base) if around else {}), **named(shapes)}}, built_copy / "別.ckpt")
    base_facts("別.ckpt", "x")
    (message,) = refused("build", "recipe.toml", "--base", "別.ckpt")
    assert message.startswith(f"別.ckpt: this is {said}")


# -- diffusers folders -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders") / "模型"
    fullsize.pipeline(fullsize.draw(5, **SMALL).to(torch.float16)).save_pretrained(path)  # type: ignore[arg-type]
    return path


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy whose weights are links, as nobody writes to them."""
    path = tmp_path / "模型"
    for file in saved.rglob("*.*"):
        target = path / file.relative_to(saved)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(file) if file.suffix == ".safetensors" else target.write_bytes(file.read_bytes())
    return path


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), encoding="utf-8")


def cut(file: Path) -> None:
    data = file.read_bytes()[:-100]
    file.unlink()
    file.write_bytes(data)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "sdxl": (lambda p: edit(p / "model_index.json", _class_name="StableDiffusionXLPipeline"), "an SDXL model"),
    "sdxl by its encoders": (lambda p: (p / "text_encoder_2").mkdir(), "an SDXL model"),
    "sdxl by its unet": (lambda p: edit(p / "unet/config.json", addition_embed_type="text_time"), "an SDXL model"),
    "inpainting": (lambda p: edit(p / "unet/config.json", in_channels=9), "an inpainting checkpoint"),
    "pipeline": (lambda p: edit(p / "model_index.json", _class_name="StableDiffusionInpaintPipeline"), "an inpainting"),
    "sd2": (lambda p: edit(p / "unet/config.json", cross_attention_dim=1024), r"an SD2\.x"),
    "sd2 by its heads": (lambda p: edit(p / "unet/config.json", attention_head_dim=[5, 10, 20, 20]), r"an SD2\.x"),
    "sample": (lambda p: edit(p / "scheduler/scheduler_config.json", prediction_type="sample"), "neither noise nor v"),
    "no text encoder": (lambda p: (p / "text_encoder").rename(p / "text"), "text_encoder: this folder is missing"),
    "no weights": (
        lambda p: (p / "vae/diffusion_pytorch_model.safetensors").unlink(),
        "vae: no diffusion",
    ),
    "no config": (lambda p: (p / "vae/config.json").unlink(), "vae/config.json: this file is missing"),
    "not json": (
        lambda p: (p / "vae/config.json").write_text("{", "utf-8"),
        "config.json: this is not a JSON",
    ),
    "cut": (lambda p: cut(p / "vae/diffusion_pytorch_model.safetensors"), "vae.*not a valid safetensors file"),
    "no unet": (lambda p: (p / "unet").rename(p / "u"), "no diffusers model: it has no unet folder"),
    "lora": (lambda p: (p / "pytorch_lora_weights.safetensors").write_bytes(b""), "a LoRA, not a base"),
    "size": (lambda p: edit(p / "unet/config.json", norm_num_groups="many"), "a size in its config.json"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_no_base(model: Path, name: str) -> None:
    base_facts(str(model), "r.toml:1")
    change, said = FOLDERS[name]
    change(model)
    with pytest.raises(InputError, match=said) as error:
        base_facts(str(model), "r.toml:1")
    assert all(problem.remedy for problem in error.value.problems)


def test_every_missing_part_of_a_folder_is_named(model: Path) -> None:
    (model / "vae/config.json").unlink()
    (model / "text_encoder/config.json").unlink()
    with pytest.raises(InputError) as error:
        base_facts(str(model), "r.toml:1")
    assert len(error.value.problems) == 2


# -- what a base says of itself ----------------------------------------------------------------------------------------


def test_a_folder_says_resolution_and_prediction(model: Path) -> None:
    facts = base_facts(str(model), "x")
    assert (facts.resolution, facts.bucket_step, facts.clip_skip) == (512, 64, 1)
    assert not (facts.v_parameterization or facts.zero_terminal_snr)
    edit(model / "unet/config.json", sample_size=96)
    edit(model / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    facts = base_facts(str(model), "x")
    assert (facts.resolution, facts.bucket_step) == (768, 64)
    assert (facts.v_parameterization, facts.zero_terminal_snr) == (True, False)
    edit(model / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    assert base_facts(str(model), "x").zero_terminal_snr


@pytest.mark.parametrize(
    ("marks", "metadata", "expected"),
    [
        ((), {}, (False, False)),
        (("v_pred",), {}, (True, False)),
        (("v_pred", "ztsnr"), {}, (True, True)),
        ((), {"modelspec.prediction_type": "v"}, (True, False)),
        ((), {"modelspec.prediction_type": "epsilon"}, (False, False)),
        ((), {METADATA_KEY: '{"v_parameterization": true, "zero_terminal_snr": true}'}, (True, True)),
    ],
)
def test_a_file_says_what_it_predicts(
    tiny_base: Path, tmp_path: Path, marks: tuple[str, ...], metadata: dict[str, str], expected: tuple[bool, bool]
) -> None:
    path = tmp_path / "基.safetensors"
    save_file({**load_file(tiny_base), **{mark: torch.empty(0) for mark in marks}}, path, metadata)
    facts = base_facts(str(path), "x")
    assert (facts.v_parameterization, facts.zero_terminal_snr) == expected


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"lora_unet_x.lora_down.weight": (4, 8)}, "this is a LoRA, not a base; give an SD1.x VAE"),
        ({"decoder.conv_in.weight": (8, 16, 3, 3)}, "a VAE of 16 latent channels, where SD1.x has 4"),
        ({"x": (3, 3)}, "this is no VAE"),
    ],
)
def test_files_that_are_no_vae(tmp_path: Path, shapes: dict[str, tuple[int, ...]], said: str) -> None:
    save_file(named(shapes), tmp_path / "変.safetensors")
    with pytest.raises(InputError, match=said):
        vae_path(str(tmp_path / "変.safetensors"), "x")


@pytest.mark.parametrize(
    ("values", "said"),
    [({"scaling_factor": 0.13025}, "its latents are scaled by 0.13025"), ({"_class_name": "AutoencoderTiny"}, "Tiny")],
)
def test_folders_that_are_no_vae(model: Path, values: dict[str, Any], said: str) -> None:
    assert vae_path(str(model), "x") == model / "vae" == Path(vae_path(str(model / "vae"), "x"))
    edit(model / "vae/config.json", **values)
    with pytest.raises(InputError, match=said):
        vae_path(str(model), "x")


def test_looking_at_a_base_imports_no_torch(model: Path) -> None:
    code = f"""
import sys
from lorac.recipe.base import base_facts, vae_path
base_facts({str(model)!r}, "x"), vae_path({str(model)!r}, "x"), base_facts("builtin:mini", "x")
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
