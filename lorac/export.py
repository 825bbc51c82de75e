"""The files that other programs read: the LoRA with its metadata, and the JSON file beside it. Pure functions.

What is written is what some reader uses: A1111 and Forge show `ss_*` and take `sshs_model_hash` for the file's short
hash, Forge needs `modelspec.architecture`, Civitai and managers read `modelspec.*`. Nothing depends on the time or the
machine, so equal builds give equal bytes. ComfyUI shows no metadata of a header above 1 MiB; tag counts are cut to fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lorac.errors import TrainingDiverged
from lorac.metadata import Facts, trigger
from lorac.sd import safetensors
from lorac.sd.lora_names import ALPHA, PARAMETERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorac.recipe.recipe import Recipe


def lora_file(
    state: Mapping[str, Tensor], texts: Mapping[str, str], precision: Literal["fp16", "bf16", "fp32"]
) -> bytes:
    """The `.safetensors` file of a training state: its LoRA tensors in `precision`, alphas too, and the hashes.

    Raises TrainingDiverged if a value is not finite in that precision.
    """
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    tensors = {name: tensor.to(dtype) for name, tensor in _rescaled(state, dtype).items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            diverged = not torch.isfinite(state[name]).all()
            remedy = "train with a smaller learning_rate" if diverged else 'set output.precision to "fp32"'
            raise TrainingDiverged(f"{name}: a value is not finite as {precision}; {remedy}")
    digest = safetensors.tensor_hash(tensors)
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    return safetensors.serialise(tensors, {**texts, **hashes})


def _rescaled(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The LoRA tensors of a state. What an alpha loses in `dtype`, as rsLoRA's α · √rank does, goes into `up`."""
    tensors = {
        name: tensor
        for name, tensor in state.items()
        if name.endswith((*PARAMETERS, ALPHA)) and name.startswith("lora_")
    }
    for name, alpha in state.items():
        if name in tensors and name.endswith(ALPHA) and (rounded := alpha.to(dtype).float()) != alpha:
            up = name.removesuffix(ALPHA) + PARAMETERS[1]
            tensors[up] = tensors[up] * (alpha / rounded)
    return tensors


def facts_for_sidecar(recipe: Recipe, facts: Facts) -> bytes:
    """What `NAME.json` says of the LoRA itself, as JSON.

    `activation text` is prompt text, so the brackets of a trigger such as `riho (idol)` are escaped, unlike in
    `modelspec.trigger_phrase`. InvokeAI makes a trigger phrase of each part between commas, as captions do of tags.
    """
    fields = {
        "description": recipe.output.comment,
        "activation text": re.sub(r"(?<!\\)([()])", r"\\\1", trigger(recipe)),
        "made": f"lorac recipe {facts.recipe_hash[:12]}, base {facts.base_name} ({facts.base_hash[:12]})",
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def sidecar(facts: bytes, weight: float | None, negative: str, notes: str) -> bytes:
    """`NAME.json` as A1111 and Forge write it and InvokeAI reads it: what they insert when the LoRA is picked.

    facts: of `facts_for_sidecar`. weight: the strength that they insert; None writes their 0, which means their own.
    """
    known = json.loads(facts)
    fields = {
        "description": known["description"],
        "sd version": "SD1",
        "activation text": known["activation text"],
        "preferred weight": weight or 0.0,
        "negative text": negative,
        "notes": f"{notes}\n{known['made']}" if notes else known["made"],
    }
    return (json.dumps(fields, ensure_ascii=False, indent=4) + "\n").encode()
