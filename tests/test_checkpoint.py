"""Single-file checkpoints: names against diffusers' converter, sizes from shapes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from torch import nn

from lorac.errors import InputError
from lorac.sd import checkpoint, formats, names
from lorac.sd import parts as opening
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.config import METADATA_KEY, BaseConfig, TextHeads, UNetHeads, VAEGroups
from lorac.sd.formats import State
from lorac.sd.unet import UNet, UNetConfig
from lorac.sd.vae import VAE, VAEConfig

CONFIG = BaseConfig(UNetHeads(2, 8), VAEGroups(4), TextHeads(4), resolution=128, clip_skip=2)
TEXT = TextConfig(width=64, layers=2, heads=4, inner=128, vocabulary=500)


@pytest.fixture(scope="module")
def models() -> tuple[UNet, VAE, TextEncoder]:
    torch.manual_seed(0)
    models = (
        UNet(UNetConfig(width=8, context=64, heads=2, groups=8)),
        VAE(VAEConfig(width=8, groups=4)),
        TextEncoder(TEXT),
    )
    for model in models:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return models


@pytest.fixture(scope="module")
def path(models: tuple[UNet, VAE, TextEncoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    checkpoint.save_ldm(path, *models, CONFIG, torch.float32)
    return path


@pytest.fixture
def tensors(path: Path) -> State:
    return formats.read(path, "x")[0]


def test_what_is_saved_is_what_is_loaded(models: tuple[UNet, VAE, TextEncoder], path: Path) -> None:
    parts, config = opening.open_base(path, "x")
    loaded = (
        checkpoint.load_unet(parts.unet, config.unet.heads, config.unet.groups),
        checkpoint.load_vae(parts.vae, config.vae.groups),
        checkpoint.load_text(parts.text, config.text.heads),
    )
    assert config == CONFIG
    for before, after in zip(models, loaded, strict=True):
        assert before.config == after.config
        assert before.state_dict().keys() == after.state_dict().keys()
        assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())
    ids = torch.zeros(1, 77, dtype=torch.long)
    assert torch.equal(models[2](ids, 2), loaded[2](ids, 2))


def test_unet_names_are_those_of_diffusers_converter(tensors: State) -> None:
    expected = convert_ldm_unet_checkpoint(dict(tensors), {"layers_per_block": 2})
    ours = opening.split(tensors, "x").unet
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_vae_names_are_those_of_diffusers_converter(tensors: State) -> None:
    config = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    expected = convert_ldm_vae_checkpoint(dict(tensors), config)
    ours = opening.split(tensors, "x").vae
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_saved_names_are_those_of_sd15(tensors: State) -> None:
    """A sample of the keys of the published v1-5-pruned file, with the ranks that it gives them."""
    expected = {
        "model.diffusion_model.time_embed.2.weight": 2,
        "model.diffusion_model.input_blocks.3.0.op.weight": 4,
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": 4,
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.bias": 1,
        "model.diffusion_model.output_blocks.2.1.conv.weight": 4,
        "model.diffusion_model.output_blocks.5.2.conv.weight": 4,
        "model.diffusion_model.output_blocks.11.1.proj_in.weight": 4,
        "model.diffusion_model.out.2.weight": 4,
        "first_stage_model.encoder.mid.attn_1.q.weight": 4,
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": 4,
        "first_stage_model.decoder.up.3.block.0.conv1.weight": 4,
        "first_stage_model.decoder.up.1.upsample.conv.bias": 1,
        "first_stage_model.post_quant_conv.weight": 4,
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight": 2,
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": 2,
    }
    assert {key: tensors[key].dim() for key in expected} == expected


@pytest.mark.parametrize("table", [names.UNET, names.VAE, names.TEXT])
def test_tables_are_one_to_one(table: names.Table) -> None:
    assert len(names.inverse(table)) == len(table)


def test_other_tensors_are_ignored(tensors: State) -> None:
    expected = opening.split(tensors, "x")
    more = {"model_ema.decay": torch.ones(1), "betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000)}
    more["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)
    actual = opening.split({**tensors, **more}, "x")
    assert (actual.unet.keys(), actual.vae.keys(), actual.text.keys()) == (
        expected.unet.keys(),
        expected.vae.keys(),
        expected.text.keys(),
    )


def test_novelais_text_names_are_read(tensors: State) -> None:
    bare = {key.replace("transformer.text_model.", "transformer."): value for key, value in tensors.items()}
    assert opening.split(bare, "x").text.keys() == opening.split(tensors, "x").text.keys()


def test_half_precision_is_loaded_as_asked(tensors: State) -> None:
    parts = opening.split({key: value.half() for key, value in tensors.items()}, "x")
    assert checkpoint.load_vae(parts.vae, 4).quant_conv.weight.dtype == torch.float32
    assert checkpoint.load_vae(parts.vae, 4, dtype=torch.float16).quant_conv.weight.dtype == torch.float16


def test_without_metadata_the_settings_are_sd15s(tensors: State, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "bare.safetensors")
    config = opening.open_base(tmp_path / "bare.safetensors", "x")[1]
    assert (config.unet.heads, config.unet.groups, config.vae.groups) == (8, 32, 32)
    assert (config.resolution, config.clip_skip) == (512, 1)


def test_missing_and_unexpected_tensors_are_named_with_their_number(tensors: State) -> None:
    parts = opening.split(tensors, "x")
    for key in [key for key in parts.unet if key.startswith("mid_block.attentions")]:
        del parts.unet[key]
    parts.unet["mystery.weight"] = torch.ones(1)
    with pytest.raises(InputError) as error:
        checkpoint.load_unet(parts.unet, 2, 8, where="base.safetensors")
    text = str(error.value)
    assert "base.safetensors: 26 missing tensors: mid_block.attentions.0.norm.bias" in text
    assert "1 unexpected tensors: mystery.weight" in text


def test_wrong_shapes_are_named(tensors: State) -> None:
    parts = opening.split(tensors, "x")
    parts.vae["quant_conv.weight"] = torch.ones(8, 4, 1, 1)
    with pytest.raises(InputError, match=r"quant_conv.weight \(8, 4, 1, 1\) instead of \(8, 8, 1, 1\)"):
        checkpoint.load_vae(parts.vae, 4)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("conditioner.embedders.0.x", "SDXL"),
        ("cond_stage_model.model.ln_final.weight", r"SD2\.x"),
        ("lora_unet_mid_block_x.alpha", "a LoRA, not a base"),
    ],
)
def test_other_families_are_refused_by_name(tensors: State, key: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        opening.split({**tensors, key: torch.ones(1)}, "x")


def test_a_file_without_a_vae_is_refused(tensors: State) -> None:
    rest = {key: value for key, value in tensors.items() if not key.startswith("first_stage_model")}
    with pytest.raises(InputError, match=r"no VAE \(keys first_stage_model\.…\)"):
        opening.split(rest, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named(tensors: State, value: float) -> None:
    assert not checkpoint.not_finite(tensors, "x")
    key = "first_stage_model.quant_conv.bias"
    tensors[key] = tensors[key].clone()
    tensors[key][3] = value
    (problem,) = checkpoint.not_finite(tensors, "x")
    assert key in problem.cause


def test_files_that_cannot_be_read(tmp_path: Path, path: Path, tensors: State) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        opening.open_base(tmp_path / "none.safetensors", "x")
    (tmp_path / "text.safetensors").write_text("not a checkpoint", encoding="utf-8")
    with pytest.raises(InputError, match=r"not a readable \.safetensors file"):
        opening.open_base(tmp_path / "text.safetensors", "x")
    (tmp_path / "short.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"not a readable \.safetensors file"):
        opening.open_base(tmp_path / "short.safetensors", "x")
    for config in ("{", "[1]", '{"unet": {"wings": 2}}', '{"wings": 2}'):
        save_file(tensors, tmp_path / "config.safetensors", {METADATA_KEY: config})
        with pytest.raises(InputError, match="metadata is not understood"):
            opening.open_base(tmp_path / "config.safetensors", "x")
