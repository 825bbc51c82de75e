"""Builds from bases of other forms, with a VAE of its own; a base is read once, and again when it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorac.digest import file_digest
from lorac.sd import parts
from lorac.sd.config import METADATA_KEY
from lorac.store import statcache
from tests import fullsize
from tests.running import lorac, refused
from tests.test_incremental import runs
from tests.test_statcache import Clock

PREFIX = "first_stage_model."
SHORT = ("--set", "source[0].repeats=1", "--set", "train.epochs=1", "--set", "sample.prompts=[]")
"""For builds that train anew: six steps, and no pictures."""


def build(*arguments: object) -> dict[str, Any]:
    """Build; what build.json says."""
    done = lorac("build", "recipe.toml", *arguments)
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(Path("build/recipe/build.json").read_text("utf-8"))
    return facts


def write_vae(base: Path, path: Path, factor: float = 1.0) -> None:
    """The base's VAE in a file of its own, its weights times `factor`."""
    state = {k.removeprefix(PREFIX): v * factor for k, v in load_file(base).items() if k.startswith(PREFIX)}
    save_file(state, path, {METADATA_KEY: '{"vae": {"groups": 4}}'})


def folder_of(base: Path, path: Path) -> None:
    """The same base as a diffusers folder."""
    found, config = parts.open_base(base, "x")
    from lorac.sd import checkpoint

    models = fullsize.Base(
        checkpoint.load_unet(found.unet, config.unet.heads, config.unet.groups),
        checkpoint.load_vae(found.vae, config.vae.groups),
        checkpoint.load_text(found.text, config.text.heads),
    )
    fullsize.pipeline(models.to(torch.float16)).save_pretrained(path)
    file = path / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"sample_size": 8}), encoding="utf-8")


def without_nothing(base: Path, path: Path, form: str) -> None:
    """The base as a file or a folder."""
    folder_of(base, path) if form == "folder" else shutil.copyfile(base, path)


def without_vae(base: Path, path: Path, form: str) -> None:
    """The same without a VAE."""
    without_nothing(base, path, form)
    if form == "folder":
        shutil.rmtree(path / "vae")
    else:
        kept = {key: value.clone() for key, value in load_file(base).items() if not key.startswith(PREFIX)}
        save_file(kept, path, metadata_of(base))


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        metadata: dict[str, str] = opened.metadata()
    return metadata


def test_a_folder_of_the_same_weights_gives_the_same_lora(built_copy: Path, tiny_base: Path) -> None:
    """The models' blobs are equal, so nothing behind them is made again, but for what writes the base's name down."""
    folder_of(tiny_base, built_copy / "フォルダ")
    facts = build("--base", "フォルダ", "--set", "train.clip_skip=2")
    single = build("--set", "train.clip_skip=2")
    assert runs(facts) == {"weights": 1, "export": 2, "sidecar": 1, "report": 1}
    assert runs(single).keys() <= {"export", "sidecar", "report"}


def test_a_base_in_many_files_is_one_base(built_copy: Path, tiny_base: Path) -> None:
    folder_of(tiny_base, built_copy / "フォルダ")
    build("--base", "フォルダ", "--set", "train.clip_skip=2")
    state = load_file(built_copy / "フォルダ/text_encoder/model.safetensors")
    key = next(key for key in state if key.endswith("final_layer_norm.bias"))
    state[key] = state[key] + 1
    save_file(state, built_copy / "フォルダ/text_encoder/model.safetensors", {"format": "pt"})
    changed = runs(build("--base", "フォルダ", "--set", "train.clip_skip=2", *SHORT))
    assert changed["weights"] == 1 and changed["train"] == 1
    assert "latent" not in changed, "the VAE is the same"


def test_a_vae_of_its_own_is_what_latents_are_made_with(built_copy: Path, tiny_base: Path) -> None:
    write_vae(tiny_base, built_copy / "同じ.safetensors")
    assert runs(build("--set", "train.vae=同じ.safetensors")).keys() == {"weights", "export", "sidecar", "report"}
    write_vae(tiny_base, built_copy / "別.safetensors", 0.9)
    changed = runs(build("--set", "train.vae=別.safetensors", *SHORT))
    assert changed["weights"] == 1
    assert changed["latent"] == 5
    assert changed["train"] == 1
    assert "image" not in changed and "tokens" not in changed


OR_VAE = ', or give a VAE: train.vae = "vae-ft-mse-840000-ema-pruned.safetensors"'


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_base_without_a_vae_of_its_own(built_copy: Path, tiny_base: Path, form: str) -> None:
    """With `train.vae` it makes what the whole base makes, but for the base's hash."""
    write_vae(tiny_base, built_copy / "vae.safetensors")
    files: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for name, cut in (("whole", without_nothing), ("pruned", without_vae)):
        (built_copy / name).mkdir()
        cut(tiny_base, built_copy / name / "基", form)
        facts = build("--base", f"{name}/基", "--set", "train.vae=vae.safetensors", *SHORT)
        files[name] = Path("build/recipe/recipe.safetensors").replace(f"{name}.safetensors")
    assert runs(facts) == {"weights": 1, "export": 1, "sidecar": 1}, "the models' blobs are the same"
    whole, pruned = (load_file(file) for file in files.values())
    assert whole.keys() == pruned.keys()
    assert all(torch.equal(whole[name], pruned[name]) for name in whole)
    told = [metadata_of(file) for file in files.values()]
    assert {key for key in told[0].keys() | told[1] if told[0].get(key) != told[1].get(key)} == {"ss_new_sd_model_hash"}


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_base_without_any_vae_is_refused_with_a_remedy(
    built_copy: Path, tiny_base: Path, form: str, verb: str
) -> None:
    without_vae(tiny_base, built_copy / "基", form)
    (message,) = refused(verb, "recipe.toml", "--base", "基")
    assert message.endswith(OR_VAE)
    assert lorac("plan", "recipe.toml", "--base", "基", "--set", f"train.vae={tiny_base}").exit_code == 0


def test_a_pickle_without_a_vae(built_copy: Path, tiny_base: Path) -> None:
    """It is looked into when it is built from."""
    whole = load_file(tiny_base)
    torch.save({"state_dict": {k: v for k, v in whole.items() if not k.startswith(PREFIX)}}, "基.ckpt")
    (message,) = refused("build", "recipe.toml", "--base", "基.ckpt")
    assert message.startswith("基.ckpt: the checkpoint has no VAE") and message.endswith(OR_VAE)
    found, _ = parts.open_base(Path("基.ckpt"), "x", needs_vae=False)
    theirs, _ = parts.open_base(tiny_base, "x")
    assert not found.vae
    for ours, expected in ((found.unet, theirs.unet), (found.text, theirs.text)):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in ours)


def test_a_file_that_is_no_vae(built_copy: Path) -> None:
    (message,) = refused("build", "recipe.toml", "--set", "train.vae=build/recipe/recipe.safetensors")
    assert message == "build/recipe/recipe.safetensors: this is no VAE but a LoRA; " + (
        "give an SD1.x VAE, such as vae-ft-mse-840000-ema-pruned"
    )


def test_nan_in_a_vae_of_its_own_names_its_file(built_copy: Path, tiny_base: Path) -> None:
    write_vae(tiny_base, built_copy / "壊.safetensors", float("nan"))
    found = refused("build", "recipe.toml", "--set", "train.vae=壊.safetensors")
    assert all(line.startswith("壊.safetensors: tensor ") and "holds NaN" in line for line in found)


def test_what_a_base_lacks_is_named_in_the_first_node_that_reads_it(built_copy: Path, tiny_base: Path) -> None:
    state = load_file(tiny_base)
    del state["model.diffusion_model.out.2.bias"]
    with safe_open(tiny_base, "pt") as file:
        save_file(state, built_copy / "欠.safetensors", file.metadata())
    (message,) = refused("build", "recipe.toml", "--base", "欠.safetensors")
    assert message == "欠.safetensors: 1 missing tensors: conv_out.bias; is this an SD1.x checkpoint?"


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_base_is_read_once(built_copy: Path, tiny_base: Path, form: str) -> None:
    """A second build knows it by its files' stat; one byte more and it is read again."""
    path = built_copy / "基.safetensors"
    if form == "file":
        path.write_bytes(tiny_base.read_bytes())
    else:
        path = built_copy / "基"
        folder_of(tiny_base, path)
    read: list[Path] = []

    def counted(file: Path) -> bytes:
        read.append(file)
        return file_digest(file)

    with patch.object(statcache, "time", Clock()), patch.object(statcache, "file_digest", counted):
        for expected in (1 if form == "file" else 6, 0):
            read.clear()
            build("--base", path.name, "--set", "train.clip_skip=2")
            assert len([file for file in read if file.is_relative_to(path)]) == expected
    weights = path if form == "file" else path / "unet" / "config.json"
    weights.write_bytes(weights.read_bytes() + (b"" if form == "file" else b"\n"))
    with patch.object(statcache, "time", Clock()), patch.object(statcache, "file_digest", counted):
        read.clear()
        build("--base", path.name, "--set", "train.clip_skip=2")
        assert [file for file in read if file.is_relative_to(path)] == [weights]


@pytest.mark.parametrize(("own", "expected"), [(None, True), (False, False)])
def test_the_bases_prediction_is_a_default(built_copy: Path, tiny_base: Path, own: bool | None, expected: bool) -> None:
    from lorac.graph.lower import lower
    from lorac.recipe.load import load

    save_file({**load_file(tiny_base), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, "v 予測.safetensors")
    sets = [] if own is None else ["loss.v_parameterization=false", "loss.zero_terminal_snr=false"]
    nodes = lower(load([Path("recipe.toml")], sets, "v 予測.safetensors")).nodes
    found = [node for node in nodes if node.kind in ("train", "draw")]
    assert [node.kind for node in found] == ["train", "draw", "draw"]
    for node in found:
        assert node.params["prediction"] == {"v_parameterization": expected, "zero_terminal_snr": expected}
