"""Pictures that a base draws, with a LoRA on it or without: what sample pictures and generated pictures have in common.

A picture is a function of (prompt, negative, settings, number, strength) and the models. `number` says from which noise
it starts, whatever the prompt and the strength, so that cells of a table show the same noise.

Pictures are drawn in batches, because a batch of eight takes half the time of eight pictures. A matrix product rounds
differently in batches of different sizes; so the batches are fixed (see `batch`) and drawn whole, and what nobody
asked for is thrown away. On a CPU each batch is computed on one thread, and batches run side by side: the bits do not
depend on the number of cores. The LoRA of a small base is merged into its weights, where it costs nothing.

Shape suffixes: B pictures, C channels, H height, W width, T texts, K windows of 75 tokens, L tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import starmap
from typing import Any

import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from lorac.digest import Digest
from lorac.engine.protocol import Work
from lorac.errors import Interrupted
from lorac.kinds import weights
from lorac.rng import seed64
from lorac.sd.device import cores, pick
from lorac.sd.lora import LoRANetwork
from lorac.sd.safetensors import tensors_of
from lorac.sd.sampler import Method, sample
from lorac.sd.tokenizer import Tokenizer, chunk
from lorac.sd.unet import Caption
from lorac.sd.vae import FACTOR, SCALE
from lorac.train.helper import keep_freed_memory, threads
from lorac.train.survive import give_back

BATCH = 8
"""The most pictures of a batch."""
BATCH_PIXELS = BATCH * 512 * 512
"""The most pixels of a batch of more than one picture: what the U-Net of SD1.x takes on a card of 8 GB."""
BESIDE_PIXELS = 4 * BATCH_PIXELS
"""Of batches that are drawn side by side on a CPU: SD1.x takes about 2 GB for each of eight pictures of 512 px."""


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn. Sides in pixels; `prediction` is what the U-Net predicts, as the sampler has it."""

    steps: int
    cfg_scale: float
    sampler: Method
    seed: int
    width: int
    height: int
    clip_skip: int
    prediction: Mapping[str, bool]

    @classmethod
    def of(cls, *params: Mapping[str, Any]) -> Settings:
        """From the settings of a node: each field is in one of `params`, which may hold other things too."""
        values = {name: value for given in params for name, value in given.items()}
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def batch(self) -> int:
        """How many pictures of this size are drawn together."""
        return max(1, min(BATCH, BATCH_PIXELS // (self.width * self.height)))


def batch(number: int, size: int) -> range:
    """The numbers that are drawn together with `number`: `size` that follow one another.

    Number 0 is drawn alone: where one picture is enough, no other is drawn in vain.
    """
    first = number // size * size
    return range(max(first, 1), first + size) if number else range(1)


class Studio:
    """The base of a node's `unet`, `text` and `vae`, with the LoRA of its `lora` or without, ready to draw."""

    def __init__(self, work: Work, *, lora: Digest | None) -> None:
        self.device = pick()
        if self.device.name == "cuda":
            give_back()  # its memory, of trainers, whose parts hold each other
        device, dtype = self.device.name, self.device.dtype
        self.unet = weights.unet(work.open(work.shared["unet"]), dtype).to(device)
        self.text = weights.text_encoder(work.open(work.shared["text"]), dtype).to(device)
        self.vae = weights.vae(work.open(work.shared["vae"])).to(device)
        self.workers = cores()
        keep_freed_memory()
        self._cancelled = work.cancelled
        self._strength: float | None = None
        self.lora: LoRANetwork | None = None
        if lora is not None:
            self.lora = LoRANetwork.of_state(self.unet, self.text, tensors_of(work.open(lora)))

    def draw(
        self, prompt: str, negative: str, settings: Settings, numbers: Sequence[int], strength: float = 1.0
    ) -> list[Image]:
        """The pictures with these numbers, in this order. Raises Interrupted when the build is stopped."""
        drawn = dict(self.stream(prompt, negative, settings, numbers, strength))
        return [drawn[number] for number in numbers]

    def stream(
        self, prompt: str, negative: str, settings: Settings, numbers: Sequence[int], strength: float = 1.0
    ) -> Iterator[tuple[int, Image]]:
        """The same as pairs (number, picture), batch by batch as they are finished."""
        for _, number, picture in self.stream_all([(prompt, negative)], settings, numbers, strength):
            yield number, picture

    @torch.no_grad()
    def stream_all(
        self, texts: Sequence[tuple[str, str]], settings: Settings, numbers: Sequence[int], strength: float = 1.0
    ) -> Iterator[tuple[int, int, Image]]:
        """The same for several (prompt, negative) as triples (place in `texts`, number, picture), in this order.

        Batches of all texts run side by side: of one alone there may be fewer than cores.
        """
        wanted = frozenset(numbers)
        batches = list(dict.fromkeys(batch(number, settings.batch) for number in numbers))
        with nullcontext() if self.device.name == "cuda" else threads(1):
            self._set_strength(strength)
            states = [self._states(pair, settings.clip_skip) for pair in texts]

            def draw(at: int, batch: range) -> list[tuple[int, int, Image]]:
                states_BLD, negative_BLD = states[at]
                pictures = self._draw(states_BLD, negative_BLD, settings, batch)
                return [(at, number, picture) for number, picture in zip(batch, pictures, strict=True)]

            workers = min(self.workers, BESIDE_PIXELS // (settings.batch * settings.width * settings.height))
            places = [(at, batch) for at in range(len(texts)) for batch in batches]
            for pictures in self._map(draw, places, max(1, workers)):
                yield from (picture for picture in pictures if picture[1] in wanted)

    def _map(
        self,
        draw: Callable[[int, range], list[tuple[int, int, Image]]],
        batches: Sequence[tuple[int, range]],
        workers: int,
    ) -> Iterator[list[tuple[int, int, Image]]]:
        if self.device.name == "cuda":
            yield from starmap(draw, batches)
            return
        with ThreadPoolExecutor(workers, "lorac-draw", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(draw, *zip(*batches, strict=True))

    def _set_strength(self, strength: float) -> None:
        if self.lora is None or strength == self._strength:
            return
        self._strength = strength
        if strength:
            self.lora.set_strength(strength)
        else:
            self.lora.detach()

    def _states(self, texts: Sequence[str], clip_skip: int) -> list[Tensor]:
        """Of each text (1, L, D), in as many windows of 75 tokens as the longest needs."""
        ids = [Tokenizer().encode(text) for text in texts]
        windows = max(1, *(-(-len(row) // 75) for row in ids))
        rows_TKL = torch.tensor([chunk(row, 75 * windows) for row in ids], device=self.device.name)
        return [self.text(rows_KL[None], clip_skip) for rows_KL in rows_TKL]

    @torch.no_grad()  # once for each thread
    def _draw(self, states_BLD: Tensor, negative_BLD: Tensor, settings: Settings, numbers: range) -> list[Image]:
        captions: dict[Tensor, Caption] = {}

        def denoise(x_BCHW: Tensor, t_B: Tensor, ctx_BLD: Tensor) -> Tensor:
            if self._cancelled.is_set():
                raise Interrupted("drawing was interrupted")
            caption = captions.setdefault(ctx_BLD, Caption(ctx_BLD))  # a key for each tensor, not for its values
            out_BCHW: Tensor = self.unet(x_BCHW, t_B, caption)
            return out_BCHW

        def step_noise(step: int) -> Tensor:
            return self._noise(settings, [seed64(settings.seed, "step noise", number, step) for number in numbers])

        start_BCHW = self._noise(settings, [seed64(settings.seed, "sample noise", number) for number in numbers])
        latents_BCHW = sample(
            denoise,
            states_BLD.expand(len(numbers), -1, -1),
            negative_BLD,
            start_BCHW,
            settings.steps,
            settings.cfg_scale,
            settings.sampler,
            step_noise,
            **settings.prediction,
        )
        # One by one: a batch is not faster here, and takes the memory of a card.
        return [to_image(self.vae.decode(z_CHW[None] / SCALE)[0]) for z_CHW in latents_BCHW]

    def _noise(self, settings: Settings, seeds: Sequence[int]) -> Tensor:
        """Standard normal latents, a row from each seed; drawn on the CPU, so that all machines draw the same."""
        shape = (4, settings.height // FACTOR, settings.width // FACTOR)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed >> 1)) for seed in seeds]
        return torch.stack(rows).to(self.device.name, self.device.dtype)


def to_image(x_CHW: Tensor) -> Image:
    """A picture from values in [-1, 1], shape (3, H, W)."""
    values_HWC = ((x_CHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().contiguous()
    height, width = values_HWC.shape[:2]
    return images.frombytes("RGB", (width, height), values_HWC.numpy().tobytes())
