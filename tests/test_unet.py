"""The U-Net against diffusers' on the same random weights, in float32."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lorac.sd.layers import Linear
from lorac.sd.unet import UNet, UNetConfig

CONTEXT = 48


def reference(config: UNetConfig) -> UNet2DConditionModel:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        block_out_channels=tuple(config.width * m for m in config.multipliers),
        cross_attention_dim=config.context,
        attention_head_dim=config.heads,
        norm_num_groups=config.groups,
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:  # Ones and zeros would hide a scale or a shift that is left out.
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
    return model.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(scope="module", params=[(32, 4, 8), (64, 8, 32)], ids=["width 32", "width 64"])
def pair(request: pytest.FixtureRequest) -> tuple[UNet, UNet2DConditionModel]:
    width, heads, groups = request.param
    config = UNetConfig(width=width, context=CONTEXT, heads=heads, groups=groups)
    theirs = reference(config)
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 16), (24, 8), (12, 20), (5, 7)], ids=str)
def test_output_equals_diffusers(pair: tuple[UNet, UNet2DConditionModel], size: tuple[int, int]) -> None:
    ours, theirs = pair
    x_BCHW, ctx_BLD = torch.randn(2, 4, *size), torch.randn(2, 77, CONTEXT)
    t_B = torch.tensor([3, 917])
    with torch.no_grad():
        assert relative_error(ours(x_BCHW, t_B, ctx_BLD), theirs(x_BCHW, t_B, ctx_BLD).sample) <= 1e-5


def test_gradients_equal_diffusers() -> None:
    config = UNetConfig(width=32, context=CONTEXT, heads=4, groups=8)
    theirs, ours = reference(config), UNet(config)
    ours.load_state_dict(theirs.state_dict())
    x_BCHW, ctx_BLD, t_B = torch.randn(1, 4, 8, 8), torch.randn(1, 77, CONTEXT), torch.tensor([400])
    ours(x_BCHW, t_B, ctx_BLD).square().mean().backward()
    theirs(x_BCHW, t_B, ctx_BLD).sample.square().mean().backward()
    actual, expected = gradients(ours), gradients(theirs)
    assert actual.keys() == expected.keys()
    # At one token self-attention has no gradient in q and k; hence the comparison with the largest one.
    floor = 1e-2 * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((actual[name] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), floor), name


def test_the_shapes_of_sd15() -> None:
    """The default configuration is SD1.5's: 859,520,964 parameters, 192 layers that a LoRA can attach to."""
    with torch.device("meta"):
        model = UNet(UNetConfig())
    assert sum(p.numel() for p in model.parameters()) == 859_520_964
    linears = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    assert len(linears) == 192
    assert all(".attentions." in name for name in linears)


def test_rows_are_independent(pair: tuple[UNet, UNet2DConditionModel]) -> None:
    ours, _ = pair
    x_BCHW, ctx_BLD, t_B = torch.randn(3, 4, 8, 8), torch.randn(3, 77, CONTEXT), torch.tensor([1, 500, 999])
    with torch.no_grad():
        together = ours(x_BCHW, t_B, ctx_BLD)
        alone = torch.cat([ours(x_BCHW[i : i + 1], t_B[i : i + 1], ctx_BLD[i : i + 1]) for i in range(3)])
    assert relative_error(together, alone) <= 1e-5
