"""The figures of `benchmarks/parity.py` stay below its limit: at SD1.5's sizes, and in seconds at small ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parity import LIMIT, ON_CARD, figures, on_device
from lorac.sd.clip import TextConfig
from lorac.sd.unet import UNetConfig
from lorac.sd.vae import VAEConfig
from tests.fullsize import Base, draw


def small() -> Base:
    return draw(
        unet=UNetConfig(width=32, context=64, heads=4, groups=8),
        vae=VAEConfig(width=16, groups=8),
        text=TextConfig(width=64, layers=12, heads=4, inner=128),
    )


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_models_and_training_step_equal_diffusers_and_peft(size: str) -> None:
    found = dict(figures(small() if size == "small" else draw()))
    assert len(found) == 9
    assert {name: error for name, error in found.items() if not error <= LIMIT} == {}


def test_a_step_elsewhere_is_compared_unscaled() -> None:
    """Here on the CPU again: the same bits in float32, and in float16 what is allowed on a card."""
    found = {(what, dtype): error for what, dtype, error in on_device("cpu", small())}
    assert found["loss", torch.float32] == found["gradients", torch.float32] == 0
    assert all(0 < error <= ON_CARD[dtype] for (_, dtype), error in found.items() if dtype == torch.float16)
