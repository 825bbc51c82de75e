"""The autoencoder against diffusers' on the same random weights, in float32."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from lorac.sd.vae import FACTOR, VAE, VAEConfig

CONFIG = VAEConfig(width=16, groups=8)


@pytest.fixture(scope="module")
def pair() -> tuple[VAE, AutoencoderKL]:
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=tuple(CONFIG.widths),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=CONFIG.resnets,
        latent_channels=CONFIG.latent,
        norm_num_groups=CONFIG.groups,
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
    ours = VAE(CONFIG)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("size", [(64, 64), (128, 72)], ids=str)
@torch.no_grad()
def test_both_ways_equal_diffusers(pair: tuple[VAE, AutoencoderKL], size: tuple[int, int]) -> None:
    ours, theirs = pair
    x_BCHW = torch.rand(2, 3, *size) * 2 - 1
    mean, logvar = ours.encode(x_BCHW)
    expected = theirs.encode(x_BCHW).latent_dist
    assert mean.shape == (2, 4, size[0] // FACTOR, size[1] // FACTOR)
    assert error(mean, expected.mean) <= 1e-5
    assert error(logvar, expected.logvar) <= 1e-5
    z_BCHW = torch.randn(mean.shape)
    assert error(ours.decode(z_BCHW), theirs.decode(z_BCHW).sample) <= 1e-5


@pytest.mark.parametrize(("bias", "expected"), [(100.0, 20.0), (-100.0, -30.0)])
@torch.no_grad()
def test_log_variance_is_clamped(bias: float, expected: float) -> None:
    vae = VAE(CONFIG)
    assert vae.quant_conv.bias is not None
    vae.quant_conv.bias[CONFIG.latent :] = bias
    _, logvar = vae.encode(torch.zeros(1, 3, 16, 16))
    assert torch.equal(logvar, torch.full_like(logvar, expected))


def test_the_size_of_sd15() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in VAE(VAEConfig()).parameters()) == 83_653_863
