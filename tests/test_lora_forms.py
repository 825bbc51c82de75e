"""LoCon, DoRA, the dropouts and the norm limit against PEFT, and against formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorac.rng import seed64
from lorac.sd.layers import Conv2d, Linear
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_names import BY_NAME
from tests.loras import delta, fill
from tests.small import base

MIDDLE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_"
LINEAR, NARROW = f"{MIDDLE}ff_net_0_proj", f"{MIDDLE}attn2_to_k"
POINT = "lora_unet_mid_block_attentions_0_proj_in"
CONV, HALVED = "lora_unet_up_blocks_1_resnets_0_conv1", "lora_unet_down_blocks_0_downsamplers_0_conv"
SHORTCUT, TIME = "lora_unet_up_blocks_1_resnets_0_conv_shortcut", "lora_unet_mid_block_resnets_0_time_emb_proj"
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"
NAMES = (LINEAR, NARROW, POINT, CONV, HALVED, SHORTCUT, TIME, TEXT)
ALL = NetworkSettings(4, 2.0, conv_dim=3, conv_alpha=1.0)
DORA = NetworkSettings(4, 2.0, conv_dim=3, conv_alpha=1.0, dora=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def layer_of(models: tuple[Any, Any], name: str) -> Any:
    target = BY_NAME[name]
    return models[target.part == "text_encoder"].get_submodule(target.path)


def input_of(layer: Any, seed: int = 1) -> Tensor:
    """Something that the layer could see: two pictures, two captions' tokens, or two time embeddings."""
    channels = layer.weight.shape[1]
    rest = (6, 4) if isinstance(layer, Conv2d) else ()
    shape = (2, 5, channels) if isinstance(layer, Linear) else (2, channels, *rest)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_weight(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's operation with another weight, in float64, from torch's own functions."""
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, Conv2d):
        return F.conv2d(x.double(), weight, bias, layer.stride, layer.padding)
    return F.linear(x.double(), weight.flatten(1), bias)


@pytest.mark.parametrize("name", NAMES)
def test_every_sort_of_layer_changes_by_alpha_over_rank_times_up_down(name: str) -> None:
    models = base()
    lora = LoRANetwork(*models, ALL, merged=False)
    state = fill(lora)
    layer = layer_of(models, name)
    x, weight = input_of(layer), layer.weight.double()
    for strength in (1.0, 0.5, 0.0):
        lora.set_strength(strength)
        expected = with_weight(layer, x, weight + strength * delta(state, name).view(weight.shape))
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_whole_unet_with_locon_is_the_unet_with_the_changed_weights() -> None:
    models = base()
    lora = LoRANetwork(*models, ALL)
    assert not lora.merged
    state = fill(lora)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 7, 64)
    with torch.no_grad():
        ours = models[0](x, t, context)
        lora.detach()
        bare = models[0](x, t, context)
        for adapter in lora.adapters():
            layer = layer_of(models, adapter.target.name)
            layer.weight += delta(state, adapter.target.name).view(layer.weight.shape).float()
        expected = models[0](x, t, context)
    assert (ours - bare).norm() > 0.01 * bare.norm()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def gradients(layer: Any, lora: LoRANetwork, name: str, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    for part in ("unet", "text_encoder"):
        for parameter in lora.parameters(part):
            parameter.grad = None
    torch.autograd.backward(layer(x), dy.float())
    grads = {p: p.grad if p.grad is not None else torch.zeros_like(p) for s in lora.stacks for p in s.parameters()}
    return {key: tensor for key, tensor in lora.named(grads).items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("name", NAMES)
def test_dora_has_columns_of_learnt_length_and_gradients_that_take_the_norm_for_constant(name: str) -> None:
    models = base()
    lora = LoRANetwork(*models, DORA)
    state = fill(lora)
    layer = layer_of(models, name)
    x, weight = input_of(layer), layer.weight.detach().double()
    leaves = {key: state[f"{name}.{key}"].double().requires_grad_() for key in ("lora_down.weight", "lora_up.weight")}
    magnitude = state[f"{name}.dora_scale"].double().requires_grad_()
    scale = float(state[f"{name}.alpha"]) / len(leaves["lora_down.weight"])
    product = leaves["lora_up.weight"].flatten(1) @ leaves["lora_down.weight"].flatten(1)
    changed = weight + scale * product.view(weight.shape)
    across = [d for d in range(weight.dim()) if d != 1]
    norm = changed.detach().square().sum(across, keepdim=True).sqrt()
    assert magnitude.shape == norm.shape
    expected = with_weight(layer, x, magnitude / norm * changed)
    dy = torch.randn(expected.shape, dtype=torch.float64)
    torch.autograd.backward(expected, dy)

    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    ours = gradients(layer, lora, name, x, dy)
    assert len(ours) == 3
    for key, leaf in (*leaves.items(), ("dora_scale", magnitude)):
        assert leaf.grad is not None
        torch.testing.assert_close(ours[f"{name}.{key}"].double(), leaf.grad, rtol=1e-3, atol=1e-4)


def test_a_new_dora_changes_nothing_and_half_its_strength_is_half_its_change() -> None:
    models = base()
    layer = layer_of(models, CONV)
    x = input_of(layer)
    bare = layer(x)
    lora = LoRANetwork(*models, DORA)
    torch.testing.assert_close(layer(x), bare, rtol=1e-4, atol=1e-5)
    fill(lora)
    full = layer(x)
    lora.set_strength(0.5)
    torch.testing.assert_close(layer(x), (bare + full) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [LINEAR, NARROW, POINT, CONV, HALVED, TEXT])
def test_dora_with_magnitudes_of_rows_is_that_of_peft(name: str) -> None:
    """LyCORIS' shape (out, 1) has PEFT's meaning: outputs and all gradients equal those of PEFT's own layer."""
    from peft import LoraConfig, get_peft_model

    models = base()
    state = fill(LoRANetwork(*models, DORA))
    for key in [key for key in state if key.endswith(".dora_scale")]:
        weight = layer_of(models, key.removesuffix(".dora_scale")).weight.detach()
        across = [d for d in range(weight.dim()) if d]
        norm = torch.linalg.vector_norm(weight, dim=across, keepdim=True)
        state[key] = norm * (1 + 0.1 * torch.randn(norm.shape, generator=torch.Generator().manual_seed(5)))
    lora = LoRANetwork.of_state(*models, state)
    layer = layer_of(models, name)
    x = input_of(layer)

    weight, rank = layer.weight.detach(), len(state[f"{name}.lora_down.weight"])
    plain: nn.Module
    if isinstance(layer, Conv2d):
        plain = nn.Conv2d(weight.shape[1], len(weight), 3, layer.stride[0], padding=1)
    else:
        plain = nn.Linear(weight.flatten(1).shape[1], len(weight), bias=layer.bias is not None)
    plain.load_state_dict({k: v.view(plain.state_dict()[k].shape) for k, v in layer.state_dict().items()})
    alpha = float(state[f"{name}.alpha"])
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], use_dora=True)
    theirs: Any = get_peft_model(nn.Sequential(plain), config)
    pairs = {
        "lora_down.weight": theirs.base_model.model[0].lora_A["default"].weight,
        "lora_up.weight": theirs.base_model.model[0].lora_B["default"].weight,
        "dora_scale": theirs.base_model.model[0].lora_magnitude_vector["default"].weight,
    }
    for key, parameter in pairs.items():
        parameter.data.copy_(state[f"{name}.{key}"].view(parameter.shape))
    expected = theirs(x)
    dy = torch.randn(expected.shape)
    torch.autograd.backward(expected, dy)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    ours = gradients(layer, lora, name, x, dy)
    for key, parameter in pairs.items():
        torch.testing.assert_close(ours[f"{name}.{key}"].view(parameter.shape), parameter.grad, rtol=1e-3, atol=1e-4)


def dropped(name: str, step: int, x: Tensor, layer: Any, state: dict[str, Tensor], settings: NetworkSettings) -> Tensor:
    """`LoRAModule.forward` of networks/lora.py in training, with our generator's masks."""
    generator = torch.Generator().manual_seed(seed64(step, "lora_dropout", BY_NAME[name].index))
    weight = layer.weight.double()
    plain = with_weight(layer, x, weight)
    if settings.module_dropout and torch.rand(1, generator=generator) < settings.module_dropout:
        return plain
    down, up = (state[f"{name}.lora_{part}.weight"].double() for part in ("down", "up"))
    conv = isinstance(layer, Conv2d)
    if conv:
        lx = F.conv2d(x.double(), down, None, layer.stride, layer.padding)
    else:
        lx = F.linear(x.double(), down.flatten(1))
    if settings.dropout:
        kept = torch.rand(lx.shape, generator=generator) >= settings.dropout
        lx = lx * kept / (1 - settings.dropout)
    scale = float(state[f"{name}.alpha"]) / len(down)
    if settings.rank_dropout:
        mask = torch.rand((lx.size(0), len(down)), generator=generator) > settings.rank_dropout
        if lx.dim() == 3:
            mask = mask.unsqueeze(1)
        elif lx.dim() == 4:
            mask = mask.unsqueeze(-1).unsqueeze(-1)
        lx, scale = lx * mask, scale / (1 - settings.rank_dropout)
    return plain + scale * (F.conv2d(lx, up) if conv else F.linear(lx, up.flatten(1)))


@pytest.mark.parametrize("chances", [(0.4, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 0.4), (0.2, 0.3, 0.4)])
@pytest.mark.parametrize("name", [LINEAR, CONV, TIME, TEXT])
def test_dropouts_are_kohyas(name: str, chances: tuple[float, float, float]) -> None:
    dropout, rank, module = chances
    settings = NetworkSettings(4, 2.0, conv_dim=3, dropout=dropout, rank_dropout=rank, module_dropout=module)
    models = base()
    lora = LoRANetwork(*models, settings)
    assert lora.dropping and not lora.merged
    state = fill(lora)
    layer = layer_of(models, name)
    x = input_of(layer)
    whole = layer(x)
    seen = set()
    for step in range(8):
        lora.start_step(step)
        ours = layer(x)
        torch.testing.assert_close(ours.double(), dropped(name, step, x, layer, state, settings), rtol=1e-5, atol=1e-5)
        lora.start_step(step)
        lora.refresh()
        assert torch.equal(layer(x), ours)
        seen.add(float(ours.detach().sum()))
    assert len(seen) >= 2
    lora.start_step(None)
    assert torch.equal(layer(x), whole)


def test_dropouts_keep_the_mean() -> None:
    """Neither rescaling nor the chances are off: the mean over many steps is the output of the whole LoRA."""
    models = base()
    lora = LoRANetwork(*models, NetworkSettings(16, 16.0, dropout=0.3, rank_dropout=0.4))
    fill(lora)
    layer = layer_of(models, NARROW)
    x = input_of(layer)
    bare = F.linear(x, layer.weight)
    whole = layer(x) - bare
    total = torch.zeros_like(whole)
    for step in range(1500):
        lora.start_step(step)
        total += layer(x) - bare
    assert (total / 1500 - whole).norm() < 0.08 * whole.norm()


def test_modules_of_one_step_drop_different_things() -> None:
    models = base()
    lora = LoRANetwork(*models, NetworkSettings(4, 4.0, module_dropout=0.5))
    fill(lora)
    lora.start_step(11)
    skipped = []
    for adapter in lora.adapters():
        layer = layer_of(models, adapter.target.name)
        assert isinstance(layer, Linear)
        x = torch.ones(1, 3, layer.matrix.shape[1])
        skipped.append(torch.equal(layer(x), F.linear(x, layer.matrix, layer.bias)))
    assert 100 < sum(skipped) < 164


@pytest.mark.parametrize("merged", [True, False])
def test_long_changes_are_scaled_down_by_kohyas_formula(merged: bool) -> None:
    models = base()
    lora = LoRANetwork(*models, NetworkSettings(4, 2.0) if merged else ALL, merged=merged)
    before = fill(lora, size=0.1)
    for name in NAMES[:2]:
        before[f"{name}.lora_up.weight"] *= 5
    lora.load_state(before)
    norms = {a.target.name: float(delta(before, a.target.name).norm()) for a in lora.adapters()}
    limit = sorted(norms.values())[len(norms) // 2]
    lora.scale_weight_norms(limit)
    after = lora.state()
    for name, norm in norms.items():
        # apply_max_norm_regularization of networks/lora.py
        clamped = max(norm, limit / 2)
        ratio = min(clamped, limit) / clamped
        for part in ("down", "up"):
            key = f"{name}.lora_{part}.weight"
            torch.testing.assert_close(after[key], before[key] * ratio**0.5, rtol=1e-4, atol=1e-7)
        assert float(delta(after, name).norm()) <= limit * (1 + 1e-4)
    layer = layer_of(models, LINEAR)
    if merged:
        expected = with_weight(layer, x := input_of(layer), layer.weight.double() + delta(after, LINEAR))
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        NetworkSettings(4, 2.0, rslora=True),
        DORA,
        ALL,
        NetworkSettings(2, 1.0, block_dims=tuple(n % 5 for n in range(25)), down_lr_weight=(0.5,) * 12),
        NetworkSettings(2, 1.0, dropout=0.5),
    ],
)
def test_a_network_of_a_state_computes_what_the_trained_one_computed(settings: NetworkSettings) -> None:
    models = base()
    x, t, ids = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randint(0, 49408, (1, 77))
    with torch.no_grad():
        lora = LoRANetwork(*models, settings, seed=4)
        state = fill(lora)
        expected = models[0](x, t, models[1](ids))
        lora.detach()
        bare = models[0](x, t, models[1](ids))
        again = LoRANetwork.of_state(*models, {**state, "step": torch.tensor(3), "exp_avg/x": torch.zeros(2)})
        ours = models[0](x, t, models[1](ids))
    assert (expected - bare).norm() > 0.005 * bare.norm()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state().items())
    assert again.state().keys() == state.keys() and not again.dropping
