"""A whole training: the article's first run, 2808 steps at 512 px, from the start of `lorac build` to the LoRA's file.

    python -m benchmarks.whole --size full --device cuda [--steps 2808] [--noise 300]

`full` is a random checkpoint of SD1.5's size, `mini` the embedded base at 128 px. The build begins with an empty store:
it reads the base, decodes pictures, encodes latents, trains U-Net and text encoder at dim and alpha 128 and writes the
file; nothing is drawn. With `--noise` so many steps at a learning rate of 1e-3 come after it, at which the article's
LoRA drew nothing but noise: what `lorac` said of it is recorded, and a file with a number that is none is an error
(exit code 1).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, environment, keep
from benchmarks.models import fill
from lorac.recipe.fields import BUILTIN_BASE
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.safetensors import tensors_of
from lorac.sd.unet import UNet, UNetConfig
from lorac.sd.vae import VAE, VAEConfig
from tests import fullsize

STEPS, RATE, TARGET = 2808, 1e-4, 90.0
NOISE = 1e-3
RECIPE = """
[[source]]
path = "{pictures}/riho_head"
repeats = 36
trigger = ["izumi riho"]
alpha = "white"

[[regularisation]]
generate = {{ count = 400, transparent = true }}
caption = "1girl"
alpha = "white"

[caption]
shuffle_caption = true
keep_tokens = 1

[network]
dim = 128
alpha = 128

[train]
base = "{base}"
steps = {steps}
learning_rate = {rate}
lr_scheduler = "cosine_with_restarts"
lr_warmup_steps = 0.01
clip_skip = 2
max_token_length = 150
seed = 23
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=["full", "mini"], default="mini")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--noise", type=int, default=0, metavar="STEPS")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the build will train")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and write no file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    runs = {RATE: options.steps} | ({NOISE: options.noise} if options.noise else {})
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        base = base_in(Path(folder), options.size)
        for rate, steps in runs.items():
            facts = whole(Path(folder), base, steps, rate)
            failed |= bool(facts["broken"]) or (rate == RATE and facts["exit_code"] != 0)
            if options.json:
                print(json.dumps(facts))
                continue
            print(f"{steps} steps: {facts['seconds']:.1f} s, exit code {facts['exit_code']}: {facts['said']}")
            case = f"{options.size}-lr{rate:g}" + ("-cuda" if options.device == "cuda" else "")
            keep("whole", case, facts, ["lorac", "torch"])
    if failed:
        sys.exit(1)


def base_in(folder: Path, size: str) -> str:
    """What a recipe in this folder calls the base."""
    if size == "mini":
        return BUILTIN_BASE
    with torch.device("meta"):
        models = UNet(UNetConfig()), VAE(VAEConfig()), TextEncoder(TextConfig())
    for model in models:
        model.to_empty(device="cpu")
        fill(model)
    fullsize.save_safetensors(fullsize.Base(*models), folder / "random.safetensors", torch.float16)
    return "random.safetensors"


def whole(folder: Path, base: str, steps: int, rate: float) -> dict[str, Any]:
    """Build it; returns what the JSON says."""
    pictures, name = (ROOT / "recipes" / "images").as_posix(), f"lr{rate:g}"
    text = RECIPE.format(pictures=pictures, base=base, steps=steps, rate=rate)
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lorac", "build", f"{name}.toml"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    seconds = time.perf_counter() - started
    out = folder / "build" / name
    loras = sorted(out.rglob("*.safetensors"))
    about: dict[str, Any] = {}
    if (out / "build.json").exists():
        about = json.loads((out / "build.json").read_text("utf-8"))
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return {
        "steps": steps,
        "rate": rate,
        "seconds": round(seconds, 1),
        "exit_code": done.returncode,
        "said": next((line for line in said if "diverged" in line), said[-1] if said else ""),
        "files": len(loras),
        "broken": [path.name for path in loras if not _is_finite(path)],
        "steps_per_second": about.get("training", {}).get("steps_per_second"),
        "kinds": {kind: round(entry["seconds"], 1) for kind, entry in about.get("kinds", {}).items()},
        "target": TARGET,
    }


def _is_finite(lora: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_of(lora).values())


if __name__ == "__main__":
    main()
