"""A VAE in float16 in which one picture overflows: that one in float32, the others as without it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lorac.engine.protocol import Failed, Item, Made
from lorac.kinds import latent
from lorac.sd.device import CPU, Device
from lorac.sd.encode import Encoder
from lorac.sd.safetensors import deserialise
from lorac.sd.vae import VAE, VAEConfig
from tests.one_item import of_blobs
from tests.small import randomise

HALF = Device("cpu", torch.float16)
CONFIG = VAEConfig(width=8, groups=4)
SIDE = 16


@pytest.fixture(scope="module")
def vae() -> VAE:
    """Its first layer gives white 90,000, which is more than float16 has, and the dark pictures here 9,000."""
    model = VAE(CONFIG).eval()
    randomise(model, 0)
    assert model.encoder.conv_in.bias is not None
    weight_OIYX = model.encoder.conv_in.weight.data.abs_()
    weight_OIYX.mul_(90_000 / weight_OIYX.sum((1, 2, 3), keepdim=True))
    model.encoder.conv_in.bias.data.zero_()
    return model


def encoder(vae: VAE, device: Device) -> Encoder:
    return Encoder(lambda dtype: copy.deepcopy(vae).to(dtype), device)


def pictures() -> Tensor:
    """Four, from -1 to 1, of which the third is white."""
    x_BCHW = 0.1 * (2 * torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 1)
    x_BCHW[2] = 1.0
    return x_BCHW


def test_the_picture_that_overflows_is_encoded_in_float32_and_the_others_are_not(vae: VAE) -> None:
    x_BCHW, half = pictures(), encoder(vae, HALF)
    mean, logvar, again = half(x_BCHW)
    assert again == [2] and mean.dtype == logvar.dtype == torch.float32
    exact = encoder(vae, CPU)(x_BCHW[2:3])
    assert torch.equal(mean[2:3], exact[0]) and torch.equal(logvar[2:3], exact[1]) and exact[2] == []
    mates_BCHW = x_BCHW.clone()
    mates_BCHW[2] = 0.0
    without = half(mates_BCHW)
    others = [0, 1, 3]
    assert without[2] == [] and torch.equal(mean[others], without[0][others])
    assert torch.equal(logvar[others], without[1][others])
    assert not torch.equal(mean[others], encoder(vae, CPU)(x_BCHW)[0][others]), "these are float16's"
    torch.testing.assert_close(mean[others], encoder(vae, CPU)(x_BCHW)[0][others], atol=0.05, rtol=0.05)


def ppm(x_CHW: Tensor) -> bytes:
    pixels = ((x_CHW + 1) * 127.5).round().byte().permute(1, 2, 0)
    return b"P6\n%d %d\n255\n" % (SIDE, SIDE) + pixels.contiguous().numpy().tobytes()


def test_the_kind_names_it_in_one_line(vae: VAE) -> None:
    said: list[str] = []
    items = [Item(i, f"{'abcd'[i]}.png", {}, {"pixels": b"%d" % i}) for i in range(4)]
    blobs = {b"%d" % i: ppm(x_CHW) for i, x_CHW in enumerate(pictures())}
    work, half = of_blobs(blobs, items=items, warn=said.append), encoder(vae, HALF)
    made = [latent.encoded(work, item, half) for item in items]
    assert said == ["c.png: the VAE overflows in float16; this picture is encoded in float32"]
    for one in made:
        assert isinstance(one, Made) and isinstance(data := one.outputs["latent"], bytes)
        assert all(torch.isfinite(tensor).all() for tensor in deserialise(data, "latent")[0].values())


def test_what_is_no_number_in_float32_either_fails(vae: VAE) -> None:
    broken = copy.deepcopy(vae)
    broken.quant_conv.weight.data.fill_(torch.nan)
    said: list[str] = []
    item = Item(0, "a.png", {}, {"pixels": b"0"})
    work = of_blobs({b"0": ppm(pictures()[0])}, items=[item], warn=said.append)
    for device in (HALF, CPU):
        failed = latent.encoded(work, item, encoder(broken, device))
        assert isinstance(failed, Failed) and failed.problems[0].where == "a.png" and said == []


@pytest.mark.gpu
def test_on_a_card(vae: VAE) -> None:
    x_BCHW = pictures()
    mean, _, again = encoder(vae, Device("cuda", torch.float16))(x_BCHW)
    assert again == [2]
    torch.testing.assert_close(mean.cpu(), encoder(vae, CPU)(x_BCHW)[0], atol=0.05, rtol=0.05)
