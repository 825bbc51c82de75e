"""LoRA: kohya's modules, the two forms, the initial values, states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorac.errors import InputError
from lorac.sd.lora import LoRANetwork, NetworkSettings
from tests.loras import fill
from tests.small import base

Base = tuple[torch.nn.Module, torch.nn.Module]


@pytest.fixture(scope="module")
def models() -> Base:
    return base()


def run(models: Base, seed: int = 0) -> Tensor:
    """One forward pass through everything."""
    unet, text_encoder = models
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 49408, (1, 2, 77), generator=generator)
    output: Tensor = unet(torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500]), text_encoder(ids, 2))
    return output


def test_a_new_lora_changes_nothing(models: Base) -> None:
    before = run(models)
    for merged in (True, False):
        lora = LoRANetwork(*models, NetworkSettings(4, 1), merged=merged)
        torch.testing.assert_close(run(models), before)
        lora.detach()


def test_initial_values_depend_on_the_module_and_not_on_the_other_targets(models: Base) -> None:
    both = LoRANetwork(*models, NetworkSettings(4, 1), seed=7).state()
    alone = LoRANetwork(*models, NetworkSettings(4, 1), targets=("unet",), seed=7).state()
    assert len(alone) == 192 * 3
    assert all(torch.equal(alone[name], both[name]) for name in alone)
    other = LoRANetwork(*models, NetworkSettings(4, 1), seed=8).state()
    name = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    assert not torch.equal(both[name], other[name])
    bound = both[name].shape[1] ** -0.5
    assert 0.9 * bound < both[name].abs().max() <= bound


@pytest.mark.parametrize(("rank", "alpha"), [(4, 1.0), (200, 200.0)])
def test_merged_and_added_forms_give_equal_outputs(models: Base, rank: int, alpha: float) -> None:
    outputs = []
    for merged in (True, False):
        lora = LoRANetwork(*models, NetworkSettings(rank, alpha), merged=merged)
        fill(lora)
        with torch.no_grad():
            outputs.append(run(models))
        lora.detach()
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_a_new_network_is_merged_only_where_the_weights_are_small(
    monkeypatch: pytest.MonkeyPatch, models: Base
) -> None:
    small = LoRANetwork(*models, NetworkSettings(1, 1))
    assert small.merged
    size = sum(layer.weight.nbytes for stack in small.stacks for layer in stack.layers)
    monkeypatch.setattr("lorac.sd.lora.MERGED_LIMIT", size - 1)
    large = LoRANetwork(*models, NetworkSettings(1, 1))
    assert not large.merged
    large.detach()


def test_the_base_gets_no_gradients(models: Base) -> None:
    lora = LoRANetwork(*models, NetworkSettings(2, 1), merged=False)
    torch.autograd.backward(run(models).sum())
    assert all(factor.grad is not None for factor in lora.parameters("unet"))
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    lora.detach()


def test_strength_scales_the_change_of_a_weight_and_zero_is_the_base(models: Base) -> None:
    bare = run(models)
    with torch.no_grad():
        lora = LoRANetwork(*models, NetworkSettings(4, 2))
        fill(lora)
        state = lora.state()
        for merged in (True, False):
            lora = LoRANetwork(*models, NetworkSettings(4, 2), merged=merged)
            lora.load_state(state)
            layer = models[0].get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
            prefix = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
            delta = state[f"{prefix}.lora_up.weight"] @ state[f"{prefix}.lora_down.weight"]
            eye = torch.eye(64)
            for strength in (0.5, -1.0, 1.0):
                lora.set_strength(strength)
                change = layer(eye).T - layer.weight
                torch.testing.assert_close(change, strength * 2 / 4 * delta, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(run(models), bare, atol=1e-3)
            lora.set_strength(0.0)
            torch.testing.assert_close(run(models), bare)
            lora.detach()


def test_a_half_precision_base_keeps_float32_factors() -> None:
    unet, text_encoder = base()
    for model in (unet, text_encoder):
        model.to(torch.bfloat16)
    for merged in (True, False):
        lora = LoRANetwork(unet, text_encoder, NetworkSettings(4, 4), merged=merged)
        layer = unet.get_submodule("mid_block.attentions.0.proj_in")
        output = layer(torch.randn(3, 128, dtype=torch.bfloat16))
        assert output.dtype == torch.bfloat16
        assert all(factor.dtype == torch.float32 for factor in lora.parameters("unet"))
        if not merged:
            torch.autograd.backward(output.float().sum())
            assert any(factor.grad is not None and factor.grad.any() for factor in lora.parameters("unet"))


def test_load_state_explains_what_does_not_fit(models: Base) -> None:
    state = LoRANetwork(*models, NetworkSettings(4, 2)).state()
    other = LoRANetwork(*models, NetworkSettings(4, 1))
    with pytest.raises(InputError, match="alpha 2 where 1 is needed"):
        other.load_state(state)
    with pytest.raises(InputError, match=r"shape \[4, 64\] where shape \[8, 64\]"):
        LoRANetwork(*models, NetworkSettings(8, 2)).load_state(state)
    with pytest.raises(InputError, match="nothing where shape"):
        other.load_state({})
    other.detach()
