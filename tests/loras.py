"""LoRAs for tests: factors as after some training, and kohya's formulas written out."""

from __future__ import annotations

import torch
from torch import Tensor

from lorac.sd.lora import LoRANetwork


def fill(lora: LoRANetwork, seed: int = 3, size: float = 0.02) -> dict[str, Tensor]:
    """Factors as after some training: `up` is not zero, and magnitudes are not the base's. Returns copies of them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in sorted(lora.state().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("dora_scale"):
            state[name] = tensor * (1 + 0.1 * noise)
        else:
            state[name] = tensor.clone() if tensor.dim() == 0 else noise * size
    lora.load_state(state)
    return state


def delta(state: dict[str, Tensor], name: str) -> Tensor:
    """What a module's LoRA adds to its weight, (O, I · kernel), in float64, scaled as every loader does it."""
    down, up = (state[f"{name}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
    return float(state[f"{name}.alpha"]) / len(down) * up @ down
