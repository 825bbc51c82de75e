"""The base checkpoint becomes its three models, each a blob of its own: a new U-Net keeps the latents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Shape
from lorac.kinds.base import read_again
from lorac.listing import shown_path

if TYPE_CHECKING:
    import torch

    from lorac.sd.clip import TextEncoder
    from lorac.sd.formats import State
    from lorac.sd.unet import UNet
    from lorac.sd.vae import VAE

NAME = "weights"
VERSION = 2
SHAPE = Shape.ONE
POOL = "gpu"
OUTPUTS = ("unet", "vae", "text")

_CONFIG = "lorac.config"


def run(work: Work) -> Iterable[Made | Failed]:
    """Each output keeps the precision of the file it comes from."""
    from dataclasses import asdict, replace

    from lorac.sd import checkpoint, parts
    from lorac.sd.safetensors import write

    places = {port: Path(place) for port, place in work.hints.items()}
    shown = {port: shown_path(path) for port, path in places.items()}
    try:
        found, config = parts.open_base(places["base"], shown["base"], needs_vae="vae" not in places)
        if "vae" in places:
            own, groups = parts.open_vae(places["vae"], shown["vae"])
            found, config = replace(found, vae=own), replace(config, vae=groups)
        checkpoint.check(found, config, shown["base"], shown.get("vae", shown["base"]))
    except InputError as error:
        yield Failed(0, error.problems)
        return
    outputs: dict[str, Path] = {}
    work.scratch.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        outputs[name] = work.scratch / f"{name}.safetensors"
        settings = json.dumps(asdict(getattr(config, name)), sort_keys=True)
        write(outputs[name], getattr(found, name), {_CONFIG: settings})
    changed = [shown[port] for port, path in places.items() if read_again(path) != work.shared[port]]
    if changed:
        yield Failed(0, [Problem(place, "it changed while it was read", "build again") for place in changed])
        return
    yield Made(0, outputs)


def unet(blob: Path | bytes, dtype: torch.dtype | None = None) -> UNet:
    """The U-Net in float32 or in `dtype`, converted tensor by tensor from the memory-mapped blob."""
    from lorac.sd import checkpoint

    state, config = _load(blob, dtype)
    return checkpoint.load_unet(state, **config)


def vae(blob: Path | bytes, dtype: torch.dtype | None = None) -> VAE:
    """The VAE, as `unet`."""
    from lorac.sd import checkpoint

    state, config = _load(blob, dtype)
    return checkpoint.load_vae(state, **config)


def text_encoder(blob: Path | bytes, dtype: torch.dtype | None = None) -> TextEncoder:
    """The text encoder, as `unet`."""
    from lorac.sd import checkpoint

    state, config = _load(blob, dtype)
    return checkpoint.load_text(state, **config)


def _load(blob: Path | bytes, dtype: torch.dtype | None) -> tuple[State, dict[str, Any]]:
    """Tensors, and the arguments of the loading function."""
    from lorac.sd.formats import read
    from lorac.sd.safetensors import deserialise

    tensors, metadata = read(blob, "weights") if isinstance(blob, Path) else deserialise(blob, "weights")
    return tensors, json.loads(metadata[_CONFIG]) | ({} if dtype is None else {"dtype": dtype})
