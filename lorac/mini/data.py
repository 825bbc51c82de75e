"""Training data of the embedded base: drawings and captions of the paper-doll world.

Shape suffixes: N drawings, B batch, C channels, H height, W width, L tokens.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorac.mini import world
from lorac.rng import Stream
from lorac.sd.tokenizer import BOS, Tokenizer, chunk

SIZE = 128
WORLD = 0
"""The seed of the random world that the embedded base learns."""

STRANGE_CAPTIONS = 0.25
MOST_STRANGE_TOKENS = 8

_BLOCK = 500


def pictures(folder: Path, count: int, workers: int) -> npt.NDArray[np.uint8]:
    """Drawings 0..count-1 as (N, 3, 128, 128) bytes, drawn once and kept in `folder` as a memory-mapped file."""
    path = folder / f"pictures-{count}.npy"
    if not path.exists():
        with ProcessPoolExecutor(workers) as pool:
            blocks = list(pool.map(_draw, [range(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]))
        part = path.with_suffix(".part.npy")
        np.save(part, np.concatenate(blocks))
        part.replace(path)
    drawn: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return drawn


def to_float(bytes_BCHW: npt.NDArray[np.uint8]) -> Tensor:
    """Bytes to pixels in [-1, 1]."""
    return torch.from_numpy(bytes_BCHW.astype(np.float32)) / 127.5 - 1


def token_row(index: int, stream: Stream, empty: float = 0.1, most_dropped: float = 0.5) -> list[int]:
    """Token ids of drawing `index`'s caption, one row of 77.

    The first tag stays first, the others are shuffled, and a share of them that is uniform in [0, `most_dropped`] is
    left out; with probability `empty` the caption is empty, which is what guidance needs. One caption in four has a few
    random tokens among its tags: a word that the world does not know (a trigger, most of a negative prompt) then means
    nothing, instead of something arbitrary.
    """
    if stream.uniform() < empty:
        return chunk([])[0]
    first, *others = world.tags(world.sample(WORLD, index))
    keep = 1 - most_dropped * stream.uniform()
    others = [tag for tag in others if stream.uniform() < keep]
    stream.shuffle(others)
    ids = _encode(", ".join([first, *others]))
    if stream.uniform() < STRANGE_CAPTIONS:
        for _ in range(1 + stream.below(MOST_STRANGE_TOKENS)):
            ids.insert(1 + stream.below(len(ids)), stream.below(BOS))
    return chunk(ids)[0]


def prompt_rows(prompts: list[str]) -> Tensor:
    """Token ids of prompts, (B, 77)."""
    return torch.tensor([chunk(_encode(prompt))[0] for prompt in prompts])


def _draw(indices: range) -> npt.NDArray[np.uint8]:
    images = [world.draw(world.sample(WORLD, i), i, SIZE).convert("RGB") for i in indices]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


def _encode(text: str) -> list[int]:
    return _tokenizer().encode(text)
