"""What a recipe's defaults take from the base checkpoint: its resolution, clip skip and bucket step, what it predicts.

Only headers and config.json files are read, and torch is not needed. What surely is no SD1.x base is refused here,
before anything is built; of a .ckpt, which only torch can read, no more is known than that it is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.recipe.fields import BUILTIN_BASE
from lorac.recipe.sections.loss import Loss
from lorac.sd import layout
from lorac.sd.safetensors import read_header

LARGEST_STEP = 64


@dataclass(frozen=True)
class BaseFacts:
    """resolution in pixels; v_parameterization and zero_terminal_snr as in the recipe's [loss]."""

    path: Path
    resolution: int = 512
    clip_skip: int = 1
    v_parameterization: bool = False
    zero_terminal_snr: bool = False
    heads: int = 8

    def prediction(self, loss: Loss) -> dict[str, bool]:
        """What the U-Net predicts and of which noise: the recipe's word, or else the base's."""
        names = ("v_parameterization", "zero_terminal_snr")
        given = {name: getattr(loss, name) for name in names}
        return {name: getattr(self, name) if own is None else own for name, own in given.items()}

    @property
    def bucket_step(self) -> int:
        """The step of bucket sides: kohya's 64, or an eighth of a smaller resolution."""
        return min(LARGEST_STEP, self.resolution // 8)


def base_path(base: str) -> Path:
    """The checkpoint's file or folder; the embedded one lies in the package."""
    if base == BUILTIN_BASE:
        return Path(str(resources.files("lorac.mini") / "mini.safetensors"))
    return Path(base)


def base_facts(base: str, where: str, vae: str | None = None) -> BaseFacts:
    """What the base says of itself; SD1.x's values where it says nothing. Raises InputError for an unusable base.

    `vae` is the recipe's: with one, the base needs none of its own.
    """
    path = base_path(base)
    try:
        config = layout.base_config(path, shown_path(path), needs_vae=not vae)
    except OSError as error:
        remedy = 'give the path of an SD1.x checkpoint, or "builtin:mini"'
        raise InputError([Problem(where, f"the base {path} cannot be read: {error.strerror}", remedy)]) from error
    own = config.v_parameterization, config.zero_terminal_snr
    return BaseFacts(path, config.resolution, config.clip_skip, *own, config.unet.heads)


def base_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a base by name, from its headers; nothing of a file that only torch can read."""
    places = [path] if not path.is_dir() else [layout.weights_file(path / name) for name in ("unet", "text_encoder")]
    shapes: dict[str, tuple[int, ...]] = {}
    for place in places:
        if place is not None and not layout.is_torch_file(place):
            shapes |= {name: info.shape for name, info in read_header(place).tensors.items()}
    return shapes


def vae_path(vae: str, where: str) -> Path:
    """The file or folder of `train.vae`. Raises InputError for what surely is no VAE of SD1.x."""
    path = layout.vae_place(Path(vae))
    try:
        layout.vae_config(path, shown_path(path))
    except OSError as error:
        cause = f"the VAE {path} cannot be read: {error.strerror}"
        raise InputError([Problem(where, cause, "give the path of an SD1.x VAE")]) from error
    return path
