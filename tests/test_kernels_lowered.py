"""Every kernel compiles for every card, without one: the PTX is that card's and does what it may on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lorac.kernels import gate

from benchmarks.kernel_cases import CASES, OLDEST
from benchmarks.lowering import CARDS

FILES = Path(__file__).parent.parent / "kernels"


def python(*arguments: str) -> str:
    """Of a process that compiles, where this one interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """Facts of every kernel for every card, from one process: each would import torch and Triton."""
    pytest.importorskip("triton")
    facts: list[dict[str, Any]] = json.loads(python("-m", "benchmarks.lowering", "--quick", "--json"))
    return facts


@pytest.mark.parametrize("operation", CASES)
def test_a_kernel_compiles_for_every_card(operation: str, compiled: list[dict[str, Any]]) -> None:
    found = [facts for facts in compiled if facts["kernel"].startswith(f"{operation}.")]
    assert {facts["card"] for facts in found} == {card for card in CARDS if card >= OLDEST.get(operation, 75)}
    for facts in found:
        assert facts["target"].rstrip("a") == f"sm_{facts['card']}"
        assert facts["atomics"] == 0, "no sum depends on an order that may change"
        assert facts["dots"] == 0 or facts["card"] >= 80, "Triton has no tensor cores before Ampere"
        assert facts["spilled"] == 0


def test_every_kernel_has_cases() -> None:
    """So that it is compiled above, and measured."""
    kernels = {path.stem for path in FILES.glob("*.py") if "\n@kernel\n" in path.read_text("utf-8")}
    assert kernels == set(CASES)


def test_triton_is_imported_by_the_first_launch() -> None:
    code = f"import sys, lorac.sd.unet, {', '.join(f'lorac.kernels.{name}' for name in CASES)}; print(*sys.modules)"
    assert "triton" not in python("-c", code).split()


def test_the_kernel_that_is_tried_first(kernels: str) -> None:
    x = torch.zeros(1, device=kernels)
    gate._first[(1,)](x)
    assert x == 1


def test_no_gate_opens_on_a_cpu() -> None:
    assert not gate.opens(torch.zeros(1))
    assert not gate.dots(torch.zeros(1))
