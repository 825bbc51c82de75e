"""The parts of `gpu.sh`, which says how to call it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, card, commit, environment, machine, versions, write_result
from benchmarks.gpu_tables import PARTS as SHOWN
from benchmarks.gpu_tables import cuda
from benchmarks.tables import OWN, filled

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


GPU_TESTS = tuple(
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests").glob("test_*.py"))
    if re.search(r"mark\.gpu\b|\bkernels: str\b", path.read_text("utf-8"))
)
"""The others need packages that may not be there."""
PARTS = (
    Part("tests", ("-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *GPU_TESTS), 150),
    _bench("step 512", "step", "--size full --px 512 --rounds 6", 60, peer=True),
    _bench("gang 512", "gang", "--size full --px 512 --count 5 --rounds 6", 60),
    _bench("2808 steps", "whole", "--size full --noise 100", 210),
    _bench("tiers", "tiers", "", 100),
    _bench("parity", "parity", "--threads 16", 100),
    _bench("kernels", "kernels", "", 90),
    _bench("attention", "attention", "", 50),
    _bench("deterministic", "deterministic", "--size full --px 512 --rounds 5", 50),
    _bench("profile", "profile_step", "--size full --px 512", 30),
    _bench("step 512, batch 8", "step", "--size full --px 512 --batch 8 --rounds 4", 60, peer=True),
    _bench("ablation", "ablation", "--size full --px 512 --rounds 4", 120),
    _bench("step 512, compiled", "step", "--size full --px 512 --rounds 4 --compile", 120, peer=True),
    _bench("step mini", "step", "--size mini --rounds 6", 40, peer=True),
    _bench("gang mini", "gang", "--size mini --count 5 --rounds 6", 40),
    _bench("step 256", "step", "--size full --px 256 --rounds 6", 40, peer=True),
)
"""The most important first. The seconds are limits, together more than there are: what no time is left for is cut."""


def main() -> None:
    """Run what can be run, write gpu.json."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    print(f"device: {device}" if device else "no CUDA device: nothing to run", flush=True)
    wanted = sys.argv[2:] or [part.name for part in PARTS]
    parts = run([part for part in PARTS if part.name in wanted] if device else (), out)
    facts = {
        "benchmark": "gpu",
        "device": device or "no CUDA",
        "card": card(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(["torch", "diffusers", "peft", "transformers"]),
        "parts": parts,
    }
    print(write_result("gpu", facts, out))
    if device:
        hand_over(out)
    sys.exit(any(part.get("exit_code") for part in parts.values()))


def hand_over(out: Path, results: Path = RESULTS, page: Path = OWN) -> None:
    """The table into benchmarks/README.md; into another folder than the usual one, the table and all figures."""
    made = cuda(results)
    page.write_text(filled(page.read_text("utf-8"), "cuda", made), encoding="utf-8")
    if out.resolve() != results.resolve():
        (out / "gpu.md").write_text(made + "\n", encoding="utf-8")
        for name in SHOWN:
            if (results / f"{name}.json").exists():
                shutil.copy(results / f"{name}.json", out)


def run(parts: Sequence[Part], out: Path) -> dict[str, dict[str, Any]]:
    """Each part with its exit code (124: it took too long), seconds and last lines; or why it was left out. All that a
    part said that failed goes into a file in `out`."""
    found: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    for part in parts:
        left = WHOLE - (time.monotonic() - started)
        if part.peer and not (find_spec("diffusers") and find_spec("peft")):
            found[part.name] = {"left_out": "diffusers and peft are not installed"}
        elif left < part.seconds / 2:
            found[part.name] = {"left_out": "no time left"}
        else:
            found[part.name] = _run(part, min(part.seconds, left), out)
        print(f"{part.name}: {found[part.name].get('left_out', found[part.name])}", flush=True)
    return found


def _run(part: Part, limit: float, out: Path) -> dict[str, Any]:
    begun = time.monotonic()
    command = [sys.executable, *part.arguments]
    # In a group of its own: a part's children must not go on beside the next part.
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, code = child.communicate(timeout=limit)[0], child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, code = child.communicate()[0], 124
    if code:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"gpu-{re.sub('[^a-z0-9]+', '-', part.name)}.log").write_bytes(said)
    lines = said.decode("utf-8", "replace").splitlines()
    return {"exit_code": code, "seconds": round(time.monotonic() - begun, 1), "said": lines[-LINES:]}


if __name__ == "__main__":
    main()
