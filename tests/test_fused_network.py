"""The whole fused network against autograd over the plain modules, each LoRA for itself: every gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.lora_names import PARTS
from lorac.sd.unet import UNet
from lorac.train.fused.kept import kept_bytes
from lorac.train.fused.network import Fused
from lorac.train.helper import Inline
from lorac.train.switches import Recompute, Switches
from tests.loras import fill
from tests.small import base

UNEVEN = NetworkSettings(3, 2.0, block_dims=(4, 4, 0, 4, 2) + (4, 0) * 10)
Case = tuple[tuple[int, int], int, int]
"""(height and width of latents, samples of each LoRA, chunks of the caption)"""


class Pass:
    """Forward of a model on random inputs, `samples` of which belong to each LoRA, and the loss of all."""

    def __init__(self, models: tuple[UNet, TextEncoder], case: Case, networks: range, parts: Sequence[str]) -> None:
        size, samples, chunks = case
        inputs = [self._inputs(n, size, samples, chunks) for n in networks]
        ids, noisy, target, t_B = (torch.cat(tensors) for tensors in zip(*inputs, strict=True))
        unet, text_encoder = models
        with torch.set_grad_enabled("text_encoder" in parts):
            context = text_encoder(ids, 2)
        # The mean over each LoRA's samples, and the sum of that over LoRAs.
        self.estimate = unet(noisy, t_B, context)
        self.loss = (self.estimate - target).square().mean() * len(networks)

    @staticmethod
    def _inputs(network: int, size: tuple[int, int], samples: int, chunks: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(10 + network)
        ids = torch.randint(1000, (samples, chunks, 77), generator=generator)
        noisy, target = (torch.randn(samples, 4, *size, generator=generator) for _ in range(2))
        return ids, noisy, target, torch.randint(1000, (samples,), generator=generator)


def networks_on(models: tuple[UNet, TextEncoder], count: range, settings: NetworkSettings, merged: bool) -> Any:
    loras = []
    for n in count:
        loras.append(LoRANetwork(*models, settings, merged=merged))
        fill(loras[-1], seed=20 + n, size=0.05)
    return loras


def train_only(lora: LoRANetwork, parts: Sequence[str]) -> None:
    for part in PARTS:
        for factor in lora.parameters(part):
            factor.requires_grad_(part in parts)


def named(lora: LoRANetwork) -> dict[str, Tensor]:
    factors = [factor for part in PARTS for factor in lora.parameters(part)]
    return lora.named({f: torch.zeros_like(f) if f.grad is None else f.grad for f in factors})


@cache
def expected(case: Case, network: int, settings: NetworkSettings, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients of one LoRA in its added form, under autograd."""
    models = base()
    (lora,) = networks_on(models, range(network, network + 1), settings, merged=False)
    train_only(lora, parts)
    lora.refresh()
    torch.autograd.backward(Pass(models, case, range(network, network + 1), parts).loss)
    return named(lora)


def fused(
    case: Case, networks: int, settings: NetworkSettings, parts: tuple[str, ...], merged: bool, switches: Switches
) -> tuple[Callable[[], Pass], list[LoRANetwork], Fused]:
    models = base()
    loras = networks_on(models, range(networks), settings, merged)
    network = Fused(*models, loras, parts, Inline(), switches)
    return lambda: Pass(models, case, range(networks), parts), loras, network


def check(
    case: Case,
    networks: int = 1,
    settings: NetworkSettings = UNEVEN,
    parts: tuple[str, ...] = PARTS,
    merged: bool = False,
    switches: Switches = Switches(),  # noqa: B008
) -> None:
    forward, loras, network = fused(case, networks, settings, parts, merged, switches)
    network.start(accumulating=False)
    torch.autograd.backward(forward().loss)
    norms = network.finish()
    assert len(norms) == networks
    for n, (lora, norm) in enumerate(zip(loras, norms, strict=True)):
        wanted, ours = expected(case, n, settings, parts), named(lora)
        assert ours.keys() == wanted.keys()
        whole = torch.stack([g.norm() for g in wanted.values()]).norm()
        torch.testing.assert_close(norm, whole, rtol=1e-4, atol=0)
        for name, gradient in wanted.items():
            assert (ours[name] - gradient).norm() <= 3e-5 * gradient.norm() + 1e-7 * whole, (n, name)


EVEN = NetworkSettings(4, 2.0)
SMALL: Case = ((8, 8), 1, 1)
ODD: Case = ((5, 7), 2, 2)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("recompute", list(Recompute))
def test_every_level_of_recomputation(recompute: Recompute, merged: bool) -> None:
    check(ODD, merged=merged, switches=Switches(recompute=recompute))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.TRANSFORMER])
@pytest.mark.parametrize("networks", [2, 3])
def test_several_loras_at_once(networks: int, recompute: Recompute, merged: bool) -> None:
    case = SMALL if networks == 3 else ODD
    check(case, networks, EVEN, merged=merged, switches=Switches(recompute=recompute))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("parts", [("unet",), ("text_encoder",)])
@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.TRANSFORMER])
def test_parts_alone(recompute: Recompute, parts: tuple[str, ...], merged: bool) -> None:
    check(ODD, parts=parts, merged=merged, switches=Switches(recompute=recompute))


def test_several_loras_of_a_text_encoder() -> None:
    check(ODD, 2, EVEN, ("text_encoder",))


@pytest.mark.parametrize("recompute", [Recompute.NOTHING, Recompute.ELEMENTWISE])
def test_products_that_are_not_joined(recompute: Recompute) -> None:
    check(SMALL, switches=Switches(joined=False, recompute=recompute))


def test_a_network_of_the_last_block_alone() -> None:
    check(SMALL, settings=NetworkSettings(2, 1.0, block_dims=(0,) * 24 + (2,)), parts=("unet",))


def test_a_caption_seen_again_has_new_keys() -> None:
    """A frozen text encoder's states may be one tensor in two steps, with other factors."""
    (unet, text_encoder), case = base(), SMALL
    (lora,) = networks_on((unet, text_encoder), range(1), EVEN, merged=False)
    network = Fused(unet, text_encoder, [lora], ("unet",), Inline(), Switches())
    noisy, context = torch.randn(1, 4, *case[0]), torch.randn(1, 77, 64)
    with torch.no_grad():
        before = unet(noisy, torch.tensor([5]), context)
        fill(lora, seed=30, size=0.05)
        after = unet(noisy, torch.tensor([5]), context)
    (plain, plain_text) = base()
    (other,) = networks_on((plain, plain_text), range(1), EVEN, merged=False)
    fill(other, seed=30, size=0.05)
    with torch.no_grad():
        torch.testing.assert_close(after, plain(noisy, torch.tensor([5]), context), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, rtol=1e-2)
    del network


def test_recomputation_keeps_less_and_less() -> None:
    case: Case = ((16, 16), 1, 1)
    kept = []
    for recompute in Recompute:
        models = base()
        loras = networks_on(models, range(1), EVEN, merged=False)
        Fused(*models, loras, ("unet",), Inline(), Switches(recompute=recompute))
        kept.append(kept_bytes(Pass(models, case, range(1), ("unet",)).loss, models))
    assert all(more >= less for more, less in pairwise(kept)), kept
    assert kept[Recompute.ELEMENTWISE] < 0.8 * kept[Recompute.NOTHING]
    assert kept[Recompute.FEED_FORWARD] < 0.8 * kept[Recompute.ELEMENTWISE]
    assert kept[Recompute.TRANSFORMER] < 0.6 * kept[Recompute.FEED_FORWARD]


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by name, and what they multiply and add."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted[func.name()] += 1
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops(parts: tuple[str, ...], settings: NetworkSettings) -> tuple[int, int]:
    """(of forward, of backward)"""
    forward, _, network = fused(SMALL, 1, settings, parts, False, Switches())
    network.start(accumulating=False)
    with Calls() as ahead:
        loss = forward().loss
    with Calls() as back:
        torch.autograd.backward(loss)
        network.finish()
    return ahead.flops, back.flops


def test_nothing_is_done_below_the_lowest_trained_layer() -> None:
    whole = NetworkSettings(2, 1.0)
    upper = NetworkSettings(2, 1.0, block_dims=(0,) * 13 + (2,) * 12)
    last = NetworkSettings(2, 1.0, block_dims=(0,) * 24 + (2,))
    ahead, back = zip(*(flops(("unet",), settings) for settings in (whole, upper, last)), strict=True)
    assert 0.9 < ahead[2] / ahead[0] <= 1.0
    assert back[1] < 0.7 * back[0]
    assert back[2] < 0.1 * back[0]
    # The lowest trained transformer computes no gradient of its input: of the norms, only that of `conv_out` runs back.
    forward, _, network = fused(SMALL, 1, last, ("unet",), False, Switches())
    network.start(accumulating=False)
    loss = forward().loss
    with Calls() as calls:
        torch.autograd.backward(loss)
    assert calls.counted["aten::native_group_norm_backward"] == 1
    # With a frozen text encoder the caption's gradient is not computed.
    assert flops(("unet",), whole)[1] < flops(PARTS, whole)[1]
