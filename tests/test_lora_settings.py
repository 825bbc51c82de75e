"""Which modules get a LoRA, of which rank and rate, against diffusers' own modules and kohya's rules written out."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lorac.errors import InputError
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_names import BY_NAME, modules
from lorac.sd.lora_settings import adapters_of
from lorac.sd.names import UNET, inverse, rename
from lorac.sd.unet import UNet, UNetConfig
from tests.small import base

CASES = Path(__file__).parent / "cases"
KOHYA = ("Transformer2DModel",), ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
"""sd-scripts networks/lora.py: UNET_TARGET_REPLACE_MODULE, without and with conv_dim."""


def full_size() -> tuple[UNet, TextEncoder]:
    with torch.device("meta"):
        return UNet(UNetConfig()), TextEncoder(TextConfig())


def walked(unet: nn.Module, classes: tuple[str, ...]) -> dict[str, nn.Linear | nn.Conv2d]:
    """kohya's names of the modules that it would train, found as `create_modules` of networks/lora.py finds them."""
    found = {}
    for name, module in unet.named_modules():
        if module.__class__.__name__ in classes:
            for child_name, child in module.named_modules():
                if isinstance(child, nn.Linear | nn.Conv2d):
                    found[f"lora_unet.{name}.{child_name}".replace(".", "_")] = child
    return found


def test_every_tensor_is_that_of_a_file_that_sd_scripts_wrote() -> None:
    # kohya_keys.txt: every tensor of a rank-128 LoRA of a real SD1.x base.
    expected: dict[str, list[int]] = {}
    for line in (CASES / "kohya_keys.txt").read_text("utf-8").splitlines():
        name, shape = line.split("\t")
        expected[name] = [int(n) for n in re.findall(r"\d+", shape)]
    ours = LoRANetwork(*full_size(), NetworkSettings(128, 128)).state()
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == expected
    assert len(ours) == 792 and sum(t.numel() for t in ours.values() if t.dim()) == 589_824 * 128


@pytest.mark.parametrize(("conv_dim", "classes"), zip((None, 3), KOHYA, strict=True))
def test_modules_and_shapes_of_the_unet_are_those_found_in_diffusers(
    conv_dim: int | None, classes: tuple[str, ...]
) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        theirs = UNet2DConditionModel(cross_attention_dim=768)
    expected = {}
    for name, module in walked(theirs, classes).items():
        kernel = module.weight.shape[2:]
        rank = 3 if tuple(kernel) == (3, 3) else 2
        expected[f"{name}.lora_down.weight"] = (rank, module.weight.shape[1], *kernel)
        expected[f"{name}.lora_up.weight"] = (len(module.weight), rank, *(1 for _ in kernel))
        expected[f"{name}.alpha"] = ()
    lora = LoRANetwork(*full_size(), NetworkSettings(2, 1.0, conv_dim=conv_dim), targets=("unet",))
    assert {name: tuple(tensor.shape) for name, tensor in lora.state().items()} == expected
    assert len(expected) == 3 * (192 if conv_dim is None else 192 + 86)


def test_blocks_are_counted_as_the_single_file_checkpoint_counts_them() -> None:
    for target in modules(("unet",), locon=True):
        theirs = rename(target.path, inverse(UNET))
        assert theirs is not None
        side, number = theirs.split(".")[:2]
        expected = {"input_blocks": int(number), "middle_block": 12, "output_blocks": 13 + int(number)}[side]
        assert target.block == expected, target.name
    assert {target.block for target in modules(("unet",), locon=True)} == set(range(1, 25))
    assert all(target.block is None for target in modules(("text_encoder",)))


def ranks(settings: NetworkSettings) -> dict[str, tuple[int, float]]:
    return {a.target.name: (a.rank, a.alpha) for a in settings.adapters(("unet", "text_encoder"))}


DOWN = "lora_unet_down_blocks_1_attentions_0_proj_in"  # IN04
SHORTCUT = "lora_unet_down_blocks_1_resnets_0_conv_shortcut"
CONV = "lora_unet_down_blocks_1_resnets_0_conv2"
HALVED = "lora_unet_down_blocks_1_downsamplers_0_conv"  # IN06
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def test_ranks_and_alphas_of_blocks() -> None:
    dims = tuple(range(25))
    found = ranks(NetworkSettings(7, 3.0, block_dims=dims, block_alphas=tuple(n / 2 for n in dims)))
    assert found[DOWN] == (4, 2.0) and found[TEXT] == (7, 3.0)
    assert SHORTCUT not in found and CONV not in found and len(found) == 264
    # conv_dim holds for all blocks; 1×1 convolutions and time projections follow the blocks' ranks.
    found = ranks(NetworkSettings(7, 3.0, conv_dim=5, conv_alpha=4.0, block_dims=dims))
    assert found[DOWN] == (4, 3.0) and found[SHORTCUT] == (4, 3.0)
    assert found[CONV] == found[HALVED] == (5, 4.0) and len(found) == 350
    found = ranks(NetworkSettings(7, 3.0, conv_block_dims=dims, conv_block_alphas=tuple(n / 4 for n in dims)))
    assert found[CONV] == (4, 1.0) and found[HALVED] == (6, 1.5)
    assert found[SHORTCUT] == found[DOWN] == (7, 3.0)


def test_a_block_with_rank_or_factor_0_is_left_out() -> None:
    without_5 = tuple(0 if block == 5 else 4 for block in range(25))
    left_out = ranks(NetworkSettings(4, 1.0)).keys() - ranks(NetworkSettings(4, 1.0, block_dims=without_5)).keys()
    assert left_out == {target.name for target in modules(("unet",)) if target.block == 5} and len(left_out) == 12
    factors = (*(0.5,) * 5, 0.0, *(0.5,) * 6)
    assert ranks(NetworkSettings(4, 1.0, down_lr_weight=factors)).keys() == ranks(NetworkSettings()).keys() - left_out
    assert not any("mid_block" in name for name in ranks(NetworkSettings(4, 1.0, mid_lr_weight=0.0)))


def test_learning_rates_are_those_of_kohyas_parameter_groups() -> None:
    unet, text_encoder = base()
    down, up = tuple((1 + n) / 10 for n in range(12)), tuple(2 + n / 10 for n in range(12))
    lora = LoRANetwork(
        unet,
        text_encoder,
        NetworkSettings(
            2, 1.0, dora=True, down_lr_weight=down, mid_lr_weight=3.0, up_lr_weight=up, loraplus_unet_lr_ratio=16.0
        ),
    )
    rates: dict[nn.Parameter, float] = {}
    for part in ("text_encoder", "unet"):
        for group in lora.groups(part):
            rates |= dict.fromkeys(group.parameters, group.factor)
        assert sum(len(group.parameters) for group in lora.groups(part)) == len(lora.parameters(part))
    named = lora.named({parameter: torch.full_like(parameter, rate) for parameter, rate in rates.items()})
    assert len(named) == 264 * 3
    for name, rate in named.items():
        target = BY_NAME[name.partition(".")[0]]
        expected = 1.0 if target.block is None else (*down, 3.0, *up)[target.block]
        if target.part == "unet" and "lora_up" in name:
            expected *= 16
        assert torch.allclose(rate, torch.tensor(expected)), name
    plain = LoRANetwork(unet, text_encoder, NetworkSettings(2, 1.0, loraplus_lr_ratio=4.0))
    assert [group.factor for group in plain.groups("text_encoder")] == [1.0, 4.0]
    assert [group.factor for group in LoRANetwork(unet, text_encoder, NetworkSettings()).groups("unet")] == [1.0]


def test_rslora_works_at_alpha_over_the_root_and_writes_what_every_loader_reads_as_that() -> None:
    lora = LoRANetwork(*base(), NetworkSettings(16, 2.0, rslora=True, conv_dim=4, conv_alpha=3.0))
    for stack in lora.stacks:
        alpha = 3.0 if stack.targets[0].spatial else 2.0
        assert math.isclose(stack.scale, alpha / math.sqrt(stack.rank))
    state = lora.state()
    assert state[f"{DOWN}.alpha"].item() == 8.0 and state[f"{CONV}.alpha"].item() == 6.0


def test_stacking_keeps_every_modules_rank_alpha_and_factor() -> None:
    alphas, factors = tuple(1.0 + n for n in range(25)), tuple(1.0 + n for n in range(12))
    settings = NetworkSettings(2, 1.0, block_dims=(2,) * 25, block_alphas=alphas, up_lr_weight=factors, conv_dim=2)
    found = {adapter.target: adapter for adapter in LoRANetwork(*base(), settings).adapters()}
    assert found == {adapter.target: adapter for adapter in settings.adapters(("unet", "text_encoder"))}


def test_settings_come_from_the_sections_of_a_recipe() -> None:
    network = {"dim": 8, "alpha": 2.0, "block_dims": [1] * 25, "scale_weight_norms": 1.0, "targets": ["unet"]}
    found = NetworkSettings.of(network, {"loraplus_lr_ratio": 16.0, "seed": 3, "batch_size": 2})
    assert found == NetworkSettings(8, 2.0, block_dims=(1,) * 25, loraplus_lr_ratio=16.0)


def test_a_file_says_what_it_holds() -> None:
    lora = LoRANetwork(*base(), NetworkSettings(4, 2.0, dora=True, conv_dim=2))
    found = {adapter.target.name: adapter for adapter in adapters_of(lora.state())}
    assert found == {adapter.target.name: adapter for adapter in lora.adapters()}
    without = {name: tensor for name, tensor in lora.state().items() if not name.endswith("alpha")}
    assert {adapter.alpha for adapter in adapters_of(without)} == {4.0, 2.0}  # the ranks


@pytest.mark.parametrize(
    "name",
    [
        "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    ],
)
def test_a_lora_of_another_kind_is_refused_by_a_tensor_that_shows_it(name: str) -> None:
    with pytest.raises(InputError, match=r"(?s)no LoRA of SD1.x with kohya's names.*PEFT's and diffusers' names"):
        adapters_of({name: torch.zeros(2, 2)})
