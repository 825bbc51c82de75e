"""`lorac build` on a base of SD1.5's size, up to a LoRA that diffusers loads: minutes, 8 GB of memory and of disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests import fullsize
from tests.fullsize import Base
from tests.tiny import draw_pictures

RECIPE = """
[[source]]
path = "pictures"
trigger = ["izumi riho"]

[network]
dim = 4
alpha = 2

[train]
epochs = 1
resolution = 128
clip_skip = 2
"""


def build(base: Base, folder: Path) -> Path:
    """The LoRA of three steps on an fp16 file of the base; prints what it took."""
    fullsize.save_safetensors(base, folder / "full 模型.safetensors", torch.float16)
    draw_pictures(folder / "pictures", 2, size=(140, 128))
    (folder / "recipe.toml").write_text(RECIPE, "utf-8")
    command = ["build", "recipe.toml", "--base", "full 模型.safetensors", "--set", "train.steps=3"]
    started = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "lorac", *command], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    print(f"{time.perf_counter() - started:.0f} s", peak_memory())
    assert json.loads((folder / "build/recipe/build.json").read_text("utf-8"))["kinds"]["weights"]["runs"] == 1
    return folder / "build" / "recipe" / "recipe.safetensors"


def peak_memory() -> str:
    """The largest resident set of a process that has ended, where the system tells."""
    if sys.platform == "win32":
        return ""
    import resource

    return f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MiB"


@pytest.mark.slow
def test_a_full_size_build_ends_with_a_lora_that_diffusers_loads(tmp_path: Path) -> None:
    base = fullsize.draw()
    lora = build(base, tmp_path)
    with safe_open(lora, "pt") as file:
        keys = list(file.keys())
        assert sum(key.endswith(".alpha") for key in keys) == 264
        assert len(keys) == 792
        assert all(bool(torch.isfinite(file.get_tensor(key)).all()) for key in keys)
        assert any(bool(file.get_tensor(key).any()) for key in keys if "lora_up" in key)
    pipe = fullsize.pipeline(base)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    adapted = [
        model
        for model in (pipe.unet, pipe.text_encoder)
        for name, _ in model.named_modules()
        if name.endswith("lora_A")
    ]
    assert len(adapted) == 264
