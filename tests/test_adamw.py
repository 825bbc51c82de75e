"""AdamW by torch's kernel against `torch.optim.AdamW`, bit for bit; and that training imports no compiler."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from lorac.train.adamw import FusedAdamW

OWN = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize("own", [{}, OWN])
@pytest.mark.parametrize(("scale", "overflow"), [(None, False), (4.0, False), (4.0, True)])
def test_bits_are_those_of_torch(own: dict[str, float], scale: float | None, overflow: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 5), (7,), (2, 2))]
    theirs = copy.deepcopy(ours)
    split = [{"params": ours[:1], "lr": 0.1}, {"params": ours[1:], "lr": 0.01}]
    adamw = FusedAdamW(split, **own)  # type: ignore[arg-type]
    split = [{"params": theirs[:1], "lr": 0.1}, {"params": theirs[1:], "lr": 0.01}]
    expected = torch.optim.AdamW(split, fused=True, **own)  # type: ignore[arg-type]
    for step in range(4):
        found_inf = torch.tensor(float(overflow and step == 2)) if scale else None
        for optimiser in (adamw, expected):
            optimiser.grad_scale = torch.tensor(scale) if scale else None  # type: ignore[union-attr]
            optimiser.found_inf = found_inf  # type: ignore[union-attr]
        for mine, other in zip(ours[: 2 + step % 2], theirs, strict=False):  # the last has a gradient now and then
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        adamw.step()
        expected.step()
        adamw.zero_grad()
        expected.zero_grad()
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is None
        state: dict[str, Tensor] = expected.state[other]
        assert adamw.state[mine].keys() == state.keys()
        assert all(torch.equal(adamw.state[mine][key], state[key]) for key in state)


def test_neither_models_nor_training_import_a_compiler() -> None:
    """transformers, torch's compiler and sympy take seconds, and each has slipped in by one harmless-looking call."""
    code = (
        "import sys; from tests.small import TEXT, UNET, base; from lorac.sd.lora import LoRANetwork, NetworkSettings\n"
        "import torch, lorac.studio, lorac.kinds.train, lorac.train.loop, lorac.train.step\n"
        "from lorac.sd import checkpoint; from lorac.train.adamw import FusedAdamW\n"
        "unet, text = base()\n"
        "unet, text = checkpoint.load_unet(unet.state_dict(), 4, 8), checkpoint.load_text(text.state_dict(), 4)\n"
        "lora = LoRANetwork(unet, text, NetworkSettings(2, 2.0)); factors = lora.parameters('unet')\n"
        "adamw = FusedAdamW([{'params': factors, 'lr': 0.1}])\n"
        "for factor in factors: factor.grad = torch.ones_like(factor)\n"
        "adamw.step()\n"
        "print(*sorted({'transformers', 'sympy', 'torch._dynamo', 'torch._inductor'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
