"""The base checkpoint becomes its three models, each a blob of its own: a new U-Net keeps the latents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorac.digest import file_digest
from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Shape
from lorac.listing import shown_path

if TYPE_CHECKING:
    from lorac.sd.checkpoint import State
    from lorac.sd.clip import TextEncoder
    from lorac.sd.unet import UNet
    from lorac.sd.vae import VAE

NAME = "weights"
VERSION = 1
SHAPE = Shape.ONE
POOL = "gpu"
OUTPUTS = ("unet", "vae", "text")

_CONFIG = "lorac.config"


def run(work: Work) -> Iterable[Made | Failed]:
    from dataclasses import asdict

    from lorac.sd import checkpoint
    from lorac.sd.safetensors import write

    path = Path(work.hints["path"])
    try:
        tensors, config = checkpoint.read(path)
        parts = checkpoint.split(tensors, shown_path(path))
        outputs: dict[str, Path] = {}
        work.scratch.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            state: State = getattr(parts, name)
            checkpoint.check_finite(state, shown_path(path))
            outputs[name] = work.scratch / f"{name}.safetensors"
            write(outputs[name], state, {_CONFIG: json.dumps(asdict(getattr(config, name)), sort_keys=True)})
    except InputError as error:
        yield Failed(0, error.problems)
        return
    if file_digest(path) != work.shared["file"]:
        yield Failed(0, [Problem(shown_path(path), "the file changed while it was read", "build again")])
        return
    yield Made(0, outputs)


def unet(blob: Path | bytes) -> UNet:
    """The U-Net in the checkpoint's own precision."""
    from lorac.sd import checkpoint

    state, config = _load(blob)
    return checkpoint.load_unet(state, **config)


def vae(blob: Path | bytes) -> VAE:
    from lorac.sd import checkpoint

    state, config = _load(blob)
    return checkpoint.load_vae(state, **config)


def text_encoder(blob: Path | bytes) -> TextEncoder:
    from lorac.sd import checkpoint

    state, config = _load(blob)
    return checkpoint.load_text(state, **config)


def _load(blob: Path | bytes) -> tuple[State, dict[str, Any]]:
    from lorac.sd.safetensors import deserialise, read

    tensors, metadata = read(blob) if isinstance(blob, Path) else deserialise(blob, "weights")
    return tensors, json.loads(metadata[_CONFIG])
