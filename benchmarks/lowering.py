"""Compile every kernel for cards that need not be there: what it takes of a multiprocessor.

    python -m benchmarks.lowering [OPERATION …] [--cards 75 80 90 120] [--quick] [--json]

A kernel is compiled as it would be launched: its operation runs forward and backward, on tensors without memory, over
the shapes of `kernel_cases.py`, and each launch is translated instead, in float16. Printed: registers of a thread,
bytes that spill from them, and shared memory of a program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lorac.kernels import gate

from benchmarks.common import table
from benchmarks.kernel_cases import CASES

CARDS = (75, 80, 90, 120)
_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_NAMES |= {torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.bool: "i1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operations", nargs="*", metavar="OPERATION", help=", ".join(CASES))
    parser.add_argument("--cards", nargs="+", type=int, default=CARDS)
    parser.add_argument("--quick", action="store_true", help="the first shape of each operation alone")
    parser.add_argument("--json", action="store_true", help="facts as JSON, with the PTX's target and instructions")
    given = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    found = [facts for card in given.cards for facts in lowered(given.operations or list(CASES), card, given.quick)]
    if given.json:
        json.dump(found, sys.stdout)
        return
    columns = ("registers", "spilled", "shared")
    rows = [[f["kernel"], str(f["card"]), f["launch"], *(str(f[column]) for column in columns)] for f in found]
    print(table(["kernel", "card", "launch", *columns], rows))


def lowered(operations: list[str], card: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Facts of each kernel of these operations, in each form in which they launch it, for one card."""
    launches: dict[tuple[Any, ...], Any] = {}
    for operation in operations:
        for case in CASES[operation]()[: 1 if quick else None]:
            with _watched(card, launches):
                x = case.input("meta")
                y = case.own(x)
                torch.autograd.grad(y, x, torch.empty_like(y))
    for (kernel, launch), compiled in launches.items():
        yield {"kernel": kernel, "card": card, "launch": launch, **_resources(compiled), **_instructions(compiled)}


class _watched:  # noqa: N801
    """Inside, a kernel's launch compiles it for `card` into `launches`, and the gate opens as on that card."""

    def __init__(self, card: int, launches: dict[tuple[Any, ...], Any]) -> None:
        self._card, self._launches = card, launches

    def __enter__(self) -> None:
        self._kept = gate.Kernel.__getitem__, gate.opens, gate.dots
        gate.Kernel.__getitem__ = lambda kernel, _: self._launch(kernel)
        gate.opens = lambda x, operation="": x.dtype in gate.DTYPES
        gate.dots = lambda x: gate.opens(x) and self._card >= 80

    def __exit__(self, *_: object) -> None:
        gate.Kernel.__getitem__, gate.opens, gate.dots = self._kept

    def _launch(self, kernel: gate.Kernel) -> Callable[..., None]:
        def compile_for_card(*given: Any, **named: Any) -> None:
            function = kernel.translated
            options: dict[str, int] = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
            arguments = dict(zip(function.arg_names, given, strict=False)) | named
            constants = {function.arg_names[place] for place in function.constexprs}
            launch = " ".join(f"{name}={value}" for name, value in arguments.items() if name in constants)
            key = f"{function.fn.__module__}.{function.fn.__name__}".removeprefix("lorac.kernels."), launch
            if key not in self._launches:
                self._launches[key] = _compiled(function, arguments, constants, options, self._card)

        return compile_for_card


def _compiled(function: Any, arguments: dict[str, Any], constants: set[str], options: dict[str, int], card: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, values, attributes = {}, {}, {}
    for place, (name, value) in enumerate(arguments.items()):
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], values[name] = "constexpr", value
            continue
        signature[name] = f"*{_NAMES[value.dtype]}" if isinstance(value, torch.Tensor) else _scalar(value)
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)


def _scalar(value: float) -> str:
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def _instructions(compiled: Any) -> dict[str, Any]:
    """The card that the PTX is for, and how many `tl.dot` and atomic operations there are in it."""
    ptx = compiled.asm["ptx"]
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    # Counted before Triton writes them out: without tensor cores a `tl.dot` leaves no instruction of its name.
    return {"target": target, "dots": compiled.asm["ttir"].count("tt.dot"), "atomics": ptx.count("atom.")}


def _resources(compiled: Any) -> dict[str, int]:
    """By the assembler's own account, from the program it made."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "kernel.cubin"
        program.write_bytes(compiled.asm["cubin"])
        said = subprocess.run([tool, "-res-usage", program], capture_output=True, text=True, check=True).stdout
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    spilled = figures["STACK"] + figures["LOCAL"]
    return {"registers": figures["REG"], "spilled": spilled, "shared": compiled.metadata.shared}


if __name__ == "__main__":
    main()
