"""Warm start: training goes on from a LoRA's file, or says what keeps it from that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lorac.errors import InputError
from lorac.export import lora_file
from lorac.kinds.start import load_start
from lorac.recipe.load import load
from lorac.sd.lora import LoRANetwork, NetworkSettings
from tests.loras import delta, fill
from tests.running import lorac
from tests.small import base
from tests.tiny import make_project

NAME = "lora_unet_mid_block_attentions_0_proj_in"
FULL = NetworkSettings(4, 0.7, rslora=True, conv_dim=2)


def written(settings: NetworkSettings = FULL, precision: Any = "fp16", **more: Any) -> tuple[dict[str, Any], bytes]:
    lora = LoRANetwork(*base(), settings, **more)
    state = fill(lora)
    return state, lora_file(state, {}, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_factors_of_the_file_are_the_first(precision: Any, tmp_path: Path) -> None:
    state, file = written(precision=precision)
    path = tmp_path / "old.safetensors"
    path.write_bytes(file)
    for blob in (file, path):
        lora = LoRANetwork(*base(), FULL, seed=9)
        load_start(lora, blob)
        found = lora.state()
        for name in (NAME, "lora_unet_up_blocks_1_resnets_0_conv1"):
            assert torch.equal(found[f"{name}.alpha"], state[f"{name}.alpha"])
            ours, theirs = delta(found, name), delta(safetensors.torch.load(file), name)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
            assert (ours - delta(state, name)).norm() < 0.01 * ours.norm()


@pytest.mark.parametrize("merged", [True, False])
def test_the_layers_have_it_at_once(merged: bool) -> None:
    settings = NetworkSettings(4, 2.0)
    state, file = written(settings, "fp32")
    models = base()
    lora = LoRANetwork(*models, settings, merged=merged)
    load_start(lora, file)
    layer: Any = models[0].get_submodule("mid_block.attentions.0.proj_in")
    with torch.no_grad():
        change = layer(torch.eye(128)) - layer.bias - layer.matrix.T
    torch.testing.assert_close(change.T.double(), delta(state, NAME), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(FULL, dim=8), "the LoRA has rank 4 and the recipe's network 8 in lora_te.*; set network.dim to 4"),
        (replace(FULL, conv_dim=8), r"rank 2 and the recipe's network 8 in \w*conv1; set network.conv_dim to 2"),
        (replace(FULL, alpha=4.0), r"has alpha 0\.7\d* and the recipe's network 4 .*set network.alpha to 0\.7"),
        (replace(FULL, rslora=False), r"has alpha 1\.4\d* and the recipe's network 0\.7 .*set network.alpha to 1\.4"),
        (replace(FULL, block_dims=(3,) * 25), r"rank 4 and .* 3 in \w+; set network.block_dims\[1\] to 4"),
        (replace(FULL, dora=True), "the LoRA has none; set network.dora to false"),
        (
            replace(FULL, conv_dim=None),
            r"has 350 modules and the recipe's network 264: \w+ is only in the LoRA; choose targets, conv_dim and",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(settings: NetworkSettings, message: str) -> None:
    lora = LoRANetwork(*base(), settings)
    before = {name: tensor.clone() for name, tensor in lora.state().items()}
    with pytest.raises(InputError, match=f"(?s)^network.weights: .*{message}"):
        load_start(lora, written()[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in lora.state().items())


def test_magnitudes_must_be_of_the_same_sort() -> None:
    dora = NetworkSettings(4, 2.0, dora=True)
    state, file = written(dora, "fp32")
    load_start(LoRANetwork(*base(), dora), file)
    with pytest.raises(InputError, match="the recipe's network has none; set network.dora to true"):
        load_start(LoRANetwork(*base(), NetworkSettings(4, 2.0)), file)
    for name in [name for name in state if name.endswith("dora_scale")]:
        outputs = len(state[name.replace("dora_scale", "lora_up.weight")])
        state[name] = torch.ones(outputs, *[1] * (state[name].dim() - 1))
    with pytest.raises(InputError, match="magnitude for each output"):
        load_start(LoRANetwork(*base(), dora), lora_file(state, {}, "fp32"))


def test_a_lora_of_another_base_is_refused() -> None:
    state, _ = written(NetworkSettings(4, 2.0))
    state[f"{NAME}.lora_down.weight"] = torch.zeros(4, 99, 1, 1)
    with pytest.raises(InputError, match=r"shape \[4, 99, 1, 1\] where shape \[4, 128, 1, 1\] is needed.*the base"):
        load_start(LoRANetwork(*base(), NetworkSettings(4, 2.0)), lora_file(state, {}, "fp32"))


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    return tmp_path


def build(*sets: str) -> tuple[int, str]:
    short = ("source[0].repeats=1", "sample.prompts=[]", "output.precision='fp32'")
    options = [word for value in (*short, *sets) for word in ("--set", value)]
    done = lorac("build", "recipe.toml", *options)
    return done.exit_code, done.output


def lora_of(project: Path) -> dict[str, Any]:
    (path,) = (path for path in project.rglob("recipe.safetensors") if ".lorac" not in path.parts)
    return safetensors.torch.load_file(path)


def test_a_recipe_goes_on_from_a_file_by_its_content(project: Path) -> None:
    code, text = build("train.epochs=1")
    assert code == 0, text
    first = lora_of(project)
    old = project / "old.safetensors"
    safetensors.torch.save_file(first, old)

    # Without a learning rate nothing is learnt, so what comes out is what went in.
    still = ("network.weights='old.safetensors'", "train.learning_rate=0", "train.epochs=1")
    code, text = build(*still)
    assert code == 0, text
    assert lora_of(project).keys() == first.keys()
    assert all(torch.equal(tensor, first[name]) for name, tensor in lora_of(project).items())

    safetensors.torch.save_file({name: t if t.dim() == 0 else t * 0.5 for name, t in first.items()}, old)
    code, text = build(*still)
    assert code == 0, text
    assert torch.equal(lora_of(project)[f"{NAME}.lora_down.weight"], 0.5 * first[f"{NAME}.lora_down.weight"])

    code, text = build(*still, "network.dim=4")
    assert code == 2
    cause = "dim in [network] is 4, and that of the LoRA to go on from is 2"
    assert f"--set network.dim=4: {cause}; take dim out, or set it to 2" in text


def test_rank_and_alpha_are_those_of_the_file_where_the_recipe_gives_none(project: Path) -> None:
    settings = NetworkSettings(6, 1.5, rslora=True, conv_dim=3, conv_alpha=2.0)
    (project / "old.safetensors").write_bytes(written(settings, "bf16")[1])
    recipe = (project / "recipe.toml").read_text(encoding="utf-8").replace("dim = 2\nalpha = 2\n", "rslora = true\n")
    (project / "recipe.toml").write_text(recipe, encoding="utf-8")
    (loaded,) = load([project / "recipe.toml"], ["network.weights='old.safetensors'"])
    network = loaded.network
    assert (network.dim, network.conv_dim) == (6, 3)
    assert network.alpha == pytest.approx(1.5, rel=2**-8)
    assert network.conv_alpha == pytest.approx(2.0, rel=2**-8)


def test_a_file_that_is_no_safetensors_is_refused_before_anything_is_made(project: Path) -> None:
    (project / "old.pt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    code, text = build("network.weights='old.pt'")
    assert code == 2 and "old.pt" in text
    code, text = build("network.weights='pictures'")
    assert code == 2 and "pictures: cannot be read" in text
