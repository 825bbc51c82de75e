"""Every loader finds all modules of an exported LoRA and changes the weights as lorac does; and what readers show."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lorac.export import facts_for_sidecar, lora_file, sidecar
from lorac.metadata import METADATA_LIMIT, metadata
from lorac.recipe.recipe import PictureSet
from lorac.recipe.sections.data import Caption
from lorac.recipe.sections.output import Output
from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.names import TEXT, UNET, inverse, rename
from lorac.sd.unet import UNet
from tests import loaders
from tests.loaders import LDM_LOADERS, Changes
from tests.loras import fill
from tests.small import base, diffusers_unet, transformers_text_model
from tests.test_export import FACTS, RECIPE, header

SETTINGS = {
    "LoRA": NetworkSettings(4, 2.0),
    "rsLoRA": NetworkSettings(6, 2.0, rslora=True),
    "LoCon": NetworkSettings(4, 2.0, conv_dim=2, conv_alpha=1.5),
    "DoRA": NetworkSettings(4, 2.0, dora=True, conv_dim=2),
    "blocks": NetworkSettings(4, 2.0, block_dims=(0, 3) + (1, 2) * 11 + (5,), block_alphas=(0.5,) * 25),
}
MODULES = {"LoRA": 264, "rsLoRA": 264, "LoCon": 350, "DoRA": 350}


@cache
def models() -> tuple[UNet, TextEncoder, dict[str, Tensor]]:
    """A small base, float64, and its weights by the names of a single-file checkpoint."""
    unet, text = base()
    names = {
        loaders.UNET: (unet, inverse(UNET)),
        loaders.TEXT: (text, inverse(TEXT)),
    }
    ldm = {
        f"{prefix}{rename(name, table)}": tensor
        for prefix, (model, table) in names.items()
        for name, tensor in model.double().state_dict().items()
    }
    return unet, text, ldm


@cache
def trained(kind: str, precision: Any = "fp32") -> tuple[dict[str, Tensor], Changes]:
    """The exported table, and what each of lorac's layers adds to its output for a random input: `changes`."""
    unet, text, _ = models()
    lora = LoRANetwork(unet, text, SETTINGS[kind], merged=False)
    fill(lora, size=0.1)
    file = safetensors.torch.load(lora_file(lora.state(), {}, precision))
    outputs = {}
    with torch.no_grad():
        for adapter in lora.adapters():
            outputs[adapter.target.name] = _layer(adapter.target.name)(_input(adapter.target.name))
        lora.detach()
        for name in outputs:
            outputs[name] = outputs[name] - _layer(name)(_input(name))
    return file, outputs


@cache
def _paths() -> dict[str, tuple[nn.Module, str]]:
    unet, text, _ = models()
    return {
        prefix + path.replace(".", "_"): (model, path)
        for prefix, model in (("lora_unet_", unet), ("lora_te_", text))
        for path, _ in model.named_modules()
    }


def _layer(name: str) -> Any:
    model, path = _paths()[name]
    return model.get_submodule(path)


def _input(name: str) -> Tensor:
    layer = _layer(name)
    generator = torch.Generator().manual_seed(len(name))
    shape = (2, layer.weight.shape[1], 5, 5) if layer.channels == 1 else (3, layer.weight.shape[1])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(changes: Changes, outputs: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """`changes`: of weights, by lorac's names of modules."""
    assert changes.keys() == outputs.keys()
    for name, ours in outputs.items():
        layer = _layer(name)
        assert changes[name].shape == layer.weight.shape, name
        with torch.no_grad():
            theirs = layer.compute(_input(name), changes[name], None)
        assert (ours - theirs).norm() <= tolerance * ours.norm(), name
        assert ours.norm() > 0, name


def by_kohya_name(changes: Changes) -> Changes:
    """From the single file's names."""
    named = {}
    for name, change in changes.items():
        prefix, table, ours = (
            (loaders.UNET, UNET, "lora_unet_") if name.startswith(loaders.UNET) else (loaders.TEXT, TEXT, "lora_te_")
        )
        path = rename(name.removeprefix(prefix), table)
        assert path is not None
        named[ours + path.removesuffix(".weight").replace(".", "_")] = change
    return named


def test_the_single_files_names_are_those_that_diffusers_converts() -> None:
    """What the replays below take for an LDM checkpoint."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet, _, ldm = models()
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    converted = convert_ldm_unet_checkpoint({k: v for k, v in ldm.items() if k.startswith(loaders.UNET)}, config)
    ours = unet.state_dict()
    assert converted.keys() == ours.keys()
    assert all(converted[name].data_ptr() == tensor.data_ptr() for name, tensor in ours.items())


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("loader", LDM_LOADERS)
def test_web_uis_change_the_checkpoint_as_lorac_does(loader: str, kind: str) -> None:
    file, outputs = trained(kind)
    changes = by_kohya_name(LDM_LOADERS[loader](file, models()[2]))
    assert len(changes) == MODULES.get(kind, len(outputs))
    assert_same(changes, outputs)


@pytest.mark.parametrize("kind", SETTINGS)
def test_invokeai_changes_diffusers_modules_as_lorac_does(kind: str) -> None:
    unet, text, _ = models()
    file, outputs = trained(kind)
    changes = loaders.invokeai(file, diffusers_unet(unet).double(), text)
    assert_same({path.replace(".", "_"): change for path, change in changes.items()}, outputs)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "LoCon", "blocks"])
def test_kohya_makes_the_same_network_from_the_file(kind: str) -> None:
    unet, text, _ = models()
    clip = transformers_text_model(text).double()
    if not hasattr(clip, "text_model"):  # as it is in the transformers that sd-scripts pins
        clip = nn.ModuleDict({"text_model": clip})
    file, outputs = trained(kind)
    assert_same(loaders.kohya(file, diffusers_unet(unet).double(), clip), outputs)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_the_scale(kind: str, precision: str) -> None:
    """alpha is rounded too: rsLoRA's 2 · √6 would be off by 0.15 % in bf16 for all modules alike."""
    file, _ = trained(kind, precision)
    exact, outputs = trained(kind)
    ours, theirs = (by_kohya_name(LDM_LOADERS["A1111"](tensors, models()[2])) for tensors in (exact, file))
    ratios = torch.stack([(theirs[name] * ours[name]).sum() / ours[name].square().sum() for name in outputs])
    assert (ratios.mean() - 1).abs() < 2e-4


def test_one_module_too_many_is_refused_as_the_loaders_do() -> None:
    file, _ = trained("LoRA")
    more = {**file, "step": torch.zeros(())}
    with pytest.raises(LookupError):
        loaders.comfyui(more, models()[2])
    loaders.forge(more, models()[2])
    with pytest.raises(LookupError):
        loaders.forge({**file, **{f"extra.{i}": torch.zeros(()) for i in range(13)}}, models()[2])


def test_invokeai_knows_sd1_by_the_width_of_its_tokens() -> None:
    from lorac.sd.clip import TextConfig
    from lorac.sd.unet import UNetConfig

    with torch.device("meta"):
        unet, text = UNet(UNetConfig()), TextEncoder(TextConfig())
        for targets in (["unet"], ["text_encoder"], ["unet", "text_encoder"]):
            state = LoRANetwork(unet, text, SETTINGS["DoRA"], targets, merged=False).state()
            assert loaders.invokeai_token_width(dict(sorted(state.items()))) == 768


# -- what readers show ------------------------------------------------------------------------------------------------


def exported(**changes: Any) -> tuple[bytes, dict[str, Any]]:
    """A file, and its metadata as A1111 and Forge read it: modules/sd_models.py `read_metadata_from_safetensors`."""
    recipe = replace(RECIPE, **changes)
    data = lora_file({"lora_unet_x.alpha": torch.tensor(2.0)}, metadata(recipe, FACTS), "fp16")
    assert data[8:10] in (b'{"', b"{'")
    values = {}
    for key, value in header(data).items():
        values[key] = json.loads(value) if value[0:1] == "{" else value
    return data, values


def test_a1111_shows_the_network_and_knows_its_version() -> None:
    """extensions-builtin/Lora/network.py `NetworkOnDisk`, ui_edit_user_metadata.py `get_metadata_table`."""
    data, values = exported()
    assert values.get("ss_output_name", "file name") == "riho"
    assert not values["ss_base_model_version"].startswith("sdxl_")
    assert values["ss_v2"] != "True"  # so any metadata means SD1
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert values["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()  # its first 12 digits are Civitai's AutoV3
    table = {key: values[key] for key in ("ss_output_name", "ss_sd_model_name", "ss_clip_skip", "ss_network_module")}
    assert table == {
        "ss_output_name": "riho",
        "ss_sd_model_name": "mini.safetensors",
        "ss_clip_skip": "2",
        "ss_network_module": "networks.lora",
    }
    assert "ss_training_started_at" not in values  # it would be float()
    buckets = {
        "{1}x{0}".format(*bucket["resolution"]): int(bucket["count"])
        for bucket in values["ss_bucket_info"]["buckets"].values()
    }
    assert buckets == {"128x128": 800, "160x96": 136}
    assert sum(int(folder.get("img_count", 0)) for folder in values["ss_dataset_dirs"].values()) == 13


def test_a1111_offers_the_tags() -> None:
    """ui_edit_user_metadata.py `build_tags`: long tags on average are taken for sentences and cut into words."""
    tags: dict[str, int] = {}
    for counts in exported()[1]["ss_tag_frequency"].values():
        for tag, count in counts.items():
            tags[tag.strip()] = tags.get(tag.strip(), 0) + int(count)
    assert sum(map(len, tags)) / len(tags) < 16
    assert sorted(tags, key=lambda tag: -tags[tag])[:2] == ["1girl", "blue eyes"]


def test_forge_knows_the_architecture_even_without_metadata() -> None:
    """extensions-builtin/sd_forge_lora/network.py `detect_version`, in its order."""
    for output in (Output(name="riho"), Output(name="riho", metadata=False)):
        values = exported(output=output)[1]
        assert not values.get("modelspec.implementation", "").startswith("https://")
        assert values["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_invokeai_reads_the_sidecar() -> None:
    """backend/model_manager/util/lora_metadata_extractor.py."""
    trigger = PictureSet("/x", 1, None, "x.toml:1", trigger=("izumi riho, idol", "smile"))
    facts = facts_for_sidecar(replace(RECIPE, sources=(trigger,)), FACTS)
    fields = json.loads(sidecar(facts, None, "", "head only"))
    phrases = {phrase.strip() for phrase in fields["activation text"].split(",") if phrase.strip()}
    assert phrases == {"izumi riho", "idol", "smile"}  # a comma in a trigger parts tags in captions as well
    description = " | ".join(str(fields[key]).strip() for key in ("description", "notes") if fields.get(key))
    assert description.startswith("リホの頭, v1 | head only\nlorac recipe")


def test_web_uis_insert_the_trigger_as_it_was_trained() -> None:
    """modules/prompt_parser.py `re_attention`: bare parentheses would be emphasis and not part of the name."""
    trigger = PictureSet("/x", 1, None, "x.toml:1", trigger=("riho (idol)", r"kaede \(idol\)"))
    recipe = replace(RECIPE, sources=(trigger,), caption=Caption(prefix="flat colour"))
    text = json.loads(facts_for_sidecar(recipe, FACTS))["activation text"]
    assert text == r"riho \(idol\), kaede \(idol\), flat colour"
    assert not re.search(r"(?<!\\)[()]", text)
    assert metadata(recipe, FACTS)["modelspec.trigger_phrase"] == r"riho (idol), kaede \(idol\), flat colour"


@pytest.mark.parametrize(
    "tags",
    [{f"tag number {i} of many": 10_000 - i for i in range(10_000)}, {"x" * (METADATA_LIMIT - 2**14): 1}],
    ids=["ten thousand", "as long as may be"],
)
def test_comfyui_shows_the_metadata_of_a_dora_with_many_tags(tags: dict[str, int]) -> None:
    """server.py `view_metadata`: `safetensors_header(path, max_size=1024 * 1024)`."""
    facts = replace(FACTS, folders=(replace(FACTS.folders[0], tags=tags),))
    unet, text, _ = models()
    lora = LoRANetwork(unet, text, SETTINGS["DoRA"], merged=False)
    lora.detach()
    data = lora_file(lora.state(), metadata(RECIPE, facts), "fp16")
    length = int.from_bytes(data[:8], "little")
    assert length <= 1024 * 1024
    assert json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["ss_tag_frequency"])["36_riho"] == tags


def test_the_whole_file_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "riho.safetensors"
    path.write_bytes(exported()[0])
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == header(path.read_bytes())
        assert list(file.keys()) == ["lora_unet_x.alpha"]
