"""What a recipe's defaults take from the base checkpoint: its resolution, clip skip and bucket step.

Only the file's header is read, and torch is not needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lorac.errors import InputError, Problem
from lorac.recipe.schema import BUILTIN_BASE
from lorac.sd.safetensors import read_header


@dataclass(frozen=True)
class BaseFacts:
    """resolution in pixels, and the step of bucket sides (kohya: 64 at 512, so an eighth)."""

    path: Path
    resolution: int = 512
    clip_skip: int = 1

    @property
    def bucket_step(self) -> int:
        return self.resolution // 8


def base_path(base: str) -> Path:
    """The checkpoint's file; the embedded one lies in the package."""
    if base == BUILTIN_BASE:
        return Path(str(resources.files("lorac.mini") / "mini.safetensors"))
    return Path(base)


def base_facts(base: str, where: str) -> BaseFacts:
    """Facts from the header; SD1.x's values where it says nothing. Raises InputError for an unusable file."""
    path = base_path(base)
    try:
        config = json.loads(read_header(path).metadata.get("lorac.config", "{}"))
    except OSError as error:
        remedy = 'give the path of an SD1.x .safetensors file, or "builtin:mini"'
        raise InputError([Problem(where, f"the base {path} cannot be read: {error.strerror}", remedy)]) from error
    return BaseFacts(path, int(config.get("resolution", 512)), int(config.get("clip_skip", 1)))
