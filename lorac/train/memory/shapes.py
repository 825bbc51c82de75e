"""The sizes of an SD1.x base and of its LoRA, from headers alone, and what a step runs through in order.

Everything here counts elements; a byte size is chosen where they are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lorac.sd.lora_settings import Adapter

TOKENS = 77
"""Of one chunk of a caption, start and end among them."""


@dataclass(frozen=True)
class Sizes:
    """Channels of a U-Net and of its text encoder; the defaults are SD1.5's."""

    width: int = 320
    context: int = 768
    heads: int = 8
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    resnets: int = 2
    latent: int = 4
    text: int = 768
    text_layers: int = 12
    text_inner: int = 3072
    text_heads: int = 12
    vocabulary: int = 49408

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], heads: int) -> Sizes:
        """From the tensors of a base, in a single file's names or diffusers'; SD1.5's where it has none."""
        names = {
            "width": (("diffusion_model.input_blocks.0.0.weight", "conv_in.weight"), 0),
            "context": (("1.transformer_blocks.0.attn2.to_k.weight", "0.transformer_blocks.0.attn2.to_k.weight"), 1),
            "text": (("embeddings.token_embedding.weight",), 1),
            "vocabulary": (("embeddings.token_embedding.weight",), 0),
            "text_inner": (("layers.0.mlp.fc1.weight",), 0),
        }
        ours = {name: shape for name, shape in shapes.items() if not name.startswith("first_stage_model.")}
        found = {
            field: next(shape[axis] for name, shape in ours.items() if name.endswith(ends))
            for field, (ends, axis) in names.items()
            if any(name.endswith(ends) for name in ours)
        }
        return cls(**found, heads=heads)  # type: ignore[arg-type]

    @property
    def widths(self) -> list[int]:
        return [self.width * multiplier for multiplier in self.multipliers]

    @property
    def time(self) -> int:
        return 4 * self.width

    def unet_weights(self) -> int:
        """Parameters of the U-Net: 859,520,964 for SD1.5."""
        c = self.width
        total = 9 * self.latent * c + c + c * self.time + self.time + self.time**2 + self.time
        for step in steps(self):
            total += step.weights(self)
        return total + 2 * c + 9 * c * self.latent + self.latent

    def text_weights(self) -> int:
        """Parameters of the text encoder: 123,060,480 for SD1.5."""
        return (self.vocabulary + TOKENS) * self.text + self.text_layers * self.text_weights_of_layer() + 2 * self.text

    def text_weights_of_layer(self) -> int:
        c, f = self.text, self.text_inner
        return 4 * (c * c + c) + 2 * c * f + f + c + 4 * c

    @cache  # noqa: B019 - sizes are few
    def module(self, path: str) -> tuple[int, int]:
        """(outputs, inputs) of a module that may have a LoRA; the inputs of a 3×3 convolution are its 9 pixels'."""
        if path.startswith("text_model."):
            wide = {"fc1": (self.text_inner, self.text), "fc2": (self.text, self.text_inner)}
            return wide.get(path.rpartition(".")[2], (self.text, self.text))
        name = path.partition(".resnets.")[2]
        if name or "samplers." in path:
            return self._convolution(path)
        c = self.widths[_level(path)]
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            return c, self.context
        return {"proj": (8 * c, c), "2": (c, 4 * c)}.get(path.rpartition(".")[2] if ".ff." in path else "", (c, c))

    def _convolution(self, path: str) -> tuple[int, int]:
        step = next(step for step in steps(self) if path.startswith(f"{step.path}."))
        name = path.rpartition(".")[2]
        if name == "time_emb_proj":
            return step.channels, self.time
        if name == "conv_shortcut":
            return step.channels, step.inputs
        return step.channels, 9 * (step.inputs if name in ("conv1", "conv") else step.channels)


def _level(path: str) -> int:
    block, index = path.split(".")[:2]
    return {"down_blocks": int(index), "up_blocks": 3 - int(index)}[block] if block != "mid_block" else 3


@dataclass(frozen=True)
class Unit:
    """One operation of the U-Net, in the order in which they run. `level` is how often the picture was halved; of a
    downsampling and an upsampling it is that of the output. `keeps`: its output becomes a skip connection; `skip`:
    channels of the one that it takes."""

    kind: Literal["resnet", "transformer", "down", "up"]
    path: str
    inputs: int
    channels: int
    level: int
    keeps: bool = False
    skip: int = 0

    def weights(self, sizes: Sizes) -> int:
        """Parameters."""
        i, c = self.inputs, self.channels
        if self.kind == "resnet":
            shortcut = i * c + c if i != c else 0
            return 2 * i + 9 * i * c + c + sizes.time * c + c + 2 * c + 9 * c * c + c + shortcut
        if self.kind == "transformer":
            norms, projections = 2 * c + 6 * c, 2 * (c * c + c)
            attentions = 6 * c * c + 2 * sizes.context * c + 2 * c
            return norms + projections + attentions + (8 * c * c + 8 * c) + (4 * c * c + c)
        return 9 * i * c + c


@cache
def steps(sizes: Sizes) -> tuple[Unit, ...]:
    """The U-Net between its first and its last convolution."""
    return tuple(_steps(sizes))


def _steps(sizes: Sizes) -> Iterator[Unit]:
    widths, last = sizes.widths, len(sizes.widths) - 1
    skips, before = [widths[0]], widths[0]
    for i, c in enumerate(widths):
        for j in range(sizes.resnets):
            path = f"down_blocks.{i}"
            yield Unit("resnet", f"{path}.resnets.{j}", before, c, i, keeps=i == last)
            if i < last:
                yield Unit("transformer", f"{path}.attentions.{j}", c, c, i, keeps=True)
            before = c
            skips.append(c)
        if i < last:
            yield Unit("down", f"down_blocks.{i}.downsamplers.0", c, c, i + 1, keeps=True)
            skips.append(c)
    yield Unit("resnet", "mid_block.resnets.0", before, before, last)
    yield Unit("transformer", "mid_block.attentions.0", before, before, last)
    yield Unit("resnet", "mid_block.resnets.1", before, before, last)
    for i, c in enumerate(reversed(widths)):
        for j in range(sizes.resnets + 1):
            skip = skips.pop()
            yield Unit("resnet", f"up_blocks.{i}.resnets.{j}", before + skip, c, last - i, skip=skip)
            if i > 0:
                yield Unit("transformer", f"up_blocks.{i}.attentions.{j}", c, c, last - i)
            before = c
        if i < last:
            yield Unit("up", f"up_blocks.{i}.upsamplers.0", c, c, last - i - 1)


def ranks(adapters: list[Adapter]) -> Mapping[str, int]:
    """Rank by the path of the module."""
    return {adapter.target.path: adapter.rank for adapter in adapters}


def factors(sizes: Sizes, network: Mapping[str, int]) -> int:
    """Elements of the two factors of all modules."""
    return sum(rank * sum(sizes.module(path)) for path, rank in network.items())
