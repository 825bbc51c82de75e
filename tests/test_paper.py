"""The step on paper: its operations are those that `flops.py` counts, its bytes those of formulas written out here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lorac.kernels.layer_norm import layer_norm
from torch import Tensor

from benchmarks import tables
from benchmarks.flops import unet_step
from benchmarks.launches import ATTENTION, GEMM, LORA, OPTIMISER, Kernel, Launches
from benchmarks.paper import CONVOLUTION, HALF, HOPPER, SINGLE, TURING, Work, facts_of, inference, longest, step
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.unet import UNet, UNetConfig
from lorac.train.fused.products import accumulate
from lorac.train.switches import Recompute

UNET = UNetConfig(width=16, context=16, heads=2, groups=4)
TEXT = TextConfig(width=16, layers=12, heads=2, inner=32)
SMALL = Work(UNET, TEXT, px=64, rank=8, targets=("unet",), tokens=75, recompute=Recompute.NOTHING)


def meta(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def flops(kernels: list[Kernel], *kinds: str) -> float:
    return sum(kernel.flops for kernel in kernels if kernel.kind in kinds)


@pytest.mark.parametrize(("count", "px"), [(1, 64), (2, 120)])
def test_operations_are_those_of_the_formulas(count: int, px: int) -> None:
    """But for attention's backward, which computes the scores again: half of what its forward takes."""
    kernels = step(replace(SMALL, count=count, px=px))
    expected = unet_step(UNET, (px // 8, px // 8), count, 77, SMALL.rank)
    forward = sum(k.flops for k in kernels if k.kind == ATTENTION and "backward" not in k.name)
    assert flops(kernels, LORA) == expected.lora_forward + expected.lora_backward
    assert (
        flops(kernels, GEMM, CONVOLUTION, ATTENTION) - forward / 2 == expected.frozen_forward + expected.frozen_backward
    )
    assert flops(kernels, OPTIMISER, "norms", "elementwise", "copies", "other") == 0


def test_the_update_reads_and_writes_all_factors() -> None:
    """Parameter, gradient and two moments, in float32, are read, all but the gradient written, and the layers' copy in
    float16; the norm reads gradients too. The rest are scalars."""
    with torch.device("meta"):
        network = LoRANetwork(UNet(UNET), TextEncoder(TEXT), NetworkSettings(SMALL.rank), SMALL.targets, merged=False)
    factors = sum(parameter.numel() for parameter in network.parameters("unet"))
    kernels = [kernel for kernel in step(SMALL) if kernel.kind == OPTIMISER]
    assert sum(k.moved for k in kernels) == pytest.approx(factors * (16 + 12 + 2 + 4), rel=0.01)


def test_bytes_of_products() -> None:
    a, b, plus, bias = meta(64, 32), meta(32, 48), meta(64, 48), meta(48)
    with Launches([b]) as launches:
        torch.mm(a, b)
        torch.addmm(bias, a, b)
        torch.addmm(plus, a, b)
        plus.addmm_(a, b)
        torch.baddbmm(plus[None], a[None], b[None], beta=0)
    factors, result = 2 * (64 * 32 + 32 * 48), 2 * 64 * 48
    found = [(k.name.removeprefix("aten::"), k.kind, k.read, k.written) for k in launches.kernels]
    assert found == [
        ("mm", GEMM, factors, result),
        ("addmm", GEMM, factors + 96, result),
        ("copy_", "copies", result, result),
        ("addmm", GEMM, factors + result, result),
        ("addmm_", GEMM, factors + result, result),
        ("baddbmm", GEMM, factors, result),
    ]
    assert {k.flops for k in launches.kernels if k.kind == GEMM} == {2 * 64 * 32 * 48}


def test_a_convolution_gets_its_bias_afterwards() -> None:
    x, weight, bias = meta(1, 8, 10, 12), meta(16, 8, 3, 3), meta(16)
    with Launches() as launches:
        y = F.conv2d(x, weight, bias, stride=2, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    result = 2 * 16 * 5 * 6
    first, second = launches.kernels
    assert (first.read, first.written, first.flops) == (2 * (8 * 120 + 16 * 72), result, 2 * 16 * 30 * 72)
    assert (second.kind, second.read, second.written) == ("elementwise", result + 32, result)


def test_views_are_free_and_what_is_expanded_is_read_once() -> None:
    x = meta(6, 1, dtype=SINGLE)
    with Launches() as launches:
        x.expand(6, 5).t().add(1)
        torch.empty_like(x).view(2, 3).unbind()
    (kernel,) = launches.kernels
    assert (kernel.read, kernel.written) == (24, 120)


def test_a_kernel_of_lorac_is_noted_with_what_it_reads_and_writes() -> None:
    x = meta(40, 64).requires_grad_()
    weight, bias = meta(64), meta(64)
    with Launches() as launches:
        layer_norm(x, weight, bias, 1e-5).backward(meta(40, 64))
    forward, backward = launches.kernels
    assert (forward.name, forward.kind) == ("layer_norm._forward", "norms")
    assert (forward.read, forward.written) == (2 * (40 * 64 + 128), 2 * 40 * 64 + 4 * 80)
    assert (backward.read, backward.written) == (2 * (2 * 40 * 64 + 64) + 4 * 80, 2 * 40 * 64)
    assert forward.place.startswith("kernels/layer_norm.py:")


def test_times() -> None:
    product = Kernel("aten::mm", GEMM, 4 * 10**6, 10**6, 36 * 10**9, HALF, "a line")
    assert TURING.limit(product) == pytest.approx(1e-3 + 0.5e-6)  # 5 MB take 11 µs
    assert TURING.usual(product) == pytest.approx(1e-3 / TURING.products + 2e-6)
    assert TURING.limit(replace(product, dtype=SINGLE)) == pytest.approx(36 / 9060 + 0.5e-6)
    copy = Kernel("aten::copy_", "copies", 10**6, 10**6, 0, HALF, "a line")
    assert HOPPER.usual(copy) == pytest.approx(2e6 / 3.35e12 / 0.8 + 2e-6)
    facts = facts_of([product, product, copy], count=5)
    assert facts["kinds"]["all"]["kernels"] == 3
    assert list(facts["kinds"]) == [GEMM, "copies", "all"]
    assert facts["cards"][TURING.name]["limit"] == pytest.approx(5 / (2e-3 + 2e6 / 448e9 + 1.5e-6), rel=1e-3)
    assert longest([product, product, copy], 1)[0][:4] == ["a line", "aten::mm float16", "2", "10"]


def test_the_table_says_what_was_computed(tmp_path: Path) -> None:
    product = Kernel("aten::mm", GEMM, 4 * 10**6, 10**6, 36 * 10**9, HALF, "a line")
    cases = {"full-512-b1-n5": facts_of([product] * 3, count=5)}
    (tmp_path / "paper.json").write_text(json.dumps({"cases": cases}), encoding="utf-8")
    head, _, row, _, speed = tables.paper(tmp_path).splitlines()
    assert head.startswith("| full, 512 px, batch 1, 5 LoRAs, ms | kernels | MB | GFLOP | RTX 2070 SUPER, limit |")
    assert row.startswith("| GEMM | 3 | 15 | 108 | 3.0 | 4.6 | ")
    assert speed.startswith("| **LoRA-steps/s** |  |  |  | 1665.6 | 1082.0 |")


def test_inference_takes_a_forward_of_two_samples() -> None:
    kernels = inference(SMALL)
    expected = unet_step(UNET, (8, 8), 2, 77, SMALL.rank).frozen_forward
    assert sum(kernel.flops for kernel in kernels) == expected


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_of_factors_are_summed_and_stored_in_float32(count: int) -> None:
    """By products of float16, which have tensor cores, without a copy."""
    kernels = [k for k in step(replace(SMALL, count=count, recompute=Recompute.ELEMENTWISE)) if k.kind != OPTIMISER]
    products = [k for k in kernels if "accumulate" in k.place]
    assert {(k.name, k.kind, k.dtype) for k in products} == {("aten::bmm", LORA, HALF)}
    with torch.device("meta"):
        network = LoRANetwork(UNet(UNET), TextEncoder(TEXT), NetworkSettings(SMALL.rank), SMALL.targets, merged=False)
    factors = sum(parameter.numel() for parameter in network.parameters("unet"))
    assert sum(k.written for k in products) == 4 * count * factors
    assert all(k.dtype != SINGLE for k in kernels if k.flops)


def test_a_gradient_may_be_added() -> None:
    a, b = torch.randn(2, 3, 5, dtype=HALF), torch.randn(2, 5, 4, dtype=HALF)
    expected = a.double() @ b.double()
    out = torch.empty(2, 4, 3).mT
    accumulate(out, a, b, adding=False)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    accumulate(out, a, b, adding=True)
    assert torch.allclose(out.double(), 2 * expected, atol=1e-5)
    a, b = a.to("meta"), b.to("meta")
    with Launches() as launches:
        accumulate(meta(2, 3, 4, dtype=SINGLE), a, b, adding=True)
    assert [k.name for k in launches.kernels] == ["aten::bmm", "aten::add_"]
