"""The parts of `gpu.sh`, which says how to call it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, commit, environment, machine, versions, write_result

WHOLE = 8.5 * 60
"""Seconds for all parts together; what no time is left for is named."""
LINES = 15


@dataclass(frozen=True)
class Part:
    """A command of this interpreter, and the seconds it may take. `peer`: whether it needs diffusers and peft."""

    name: str
    arguments: tuple[str, ...]
    seconds: int
    peer: bool = False


def _bench(name: str, module: str, arguments: str, seconds: int, peer: bool = False) -> Part:
    return Part(name, ("-m", f"benchmarks.{module}", *arguments.split(), "--device", "cuda"), seconds, peer)


PARTS = (
    Part("tests", ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"), 150),
    Part("memory", ("-m", "benchmarks.memory", "--quick"), 60),
    _bench("kernels", "kernels", "--rounds 5", 90),
    _bench("step 512", "step", "--size full --px 512 --rounds 8", 100, peer=True),
    _bench("step 512, batch 4", "step", "--size full --px 512 --batch 4 --rounds 5", 100, peer=True),
    _bench("gang 256", "gang", "--size full --px 256 --count 5 --rounds 5", 80),
    _bench("step 256", "step", "--size full --px 256 --rounds 8", 60, peer=True),
    _bench("step mini", "step", "--size mini --rounds 8", 50, peer=True),
    _bench("gang mini", "gang", "--size mini --count 5 --rounds 8", 50),
)


def main() -> None:
    """Run what can be run, write gpu.json."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    print(f"device: {device}" if device else "no CUDA device: nothing to run", flush=True)
    parts = run(PARTS if device else ())
    facts = {
        "benchmark": "gpu",
        "device": device or "no CUDA",
        "commit": commit(),
        "machine": machine(),
        "versions": versions(["torch", "diffusers", "peft", "transformers"]),
        "parts": parts,
    }
    print(write_result("gpu", facts, out))
    sys.exit(any(part.get("exit_code") for part in parts.values()))


def run(parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """Each part with its exit code (124: it took too long), seconds and last lines; or why it was left out."""
    found: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    for part in parts:
        left = WHOLE - (time.monotonic() - started)
        if part.peer and not (find_spec("diffusers") and find_spec("peft")):
            found[part.name] = {"left_out": "diffusers and peft are not installed"}
        elif left < part.seconds / 2:
            found[part.name] = {"left_out": "no time left"}
        else:
            found[part.name] = _run(part, min(part.seconds, left))
        print(f"{part.name}: {found[part.name].get('left_out', found[part.name])}", flush=True)
    return found


def _run(part: Part, limit: float) -> dict[str, Any]:
    begun = time.monotonic()
    command = [sys.executable, *part.arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit
        )
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, said = 124, late.stdout or b""
    lines = said.decode("utf-8", "replace").splitlines()
    return {"exit_code": code, "seconds": round(time.monotonic() - begun, 1), "said": lines[-LINES:]}


if __name__ == "__main__":
    main()
