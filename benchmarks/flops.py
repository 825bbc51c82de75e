"""Floating-point operations of a LoRA training step, from shapes alone.

A multiplication and an addition are two. Counted are matrix products, convolutions and attention (two products forward,
four backward: nothing recomputed). Backward of the frozen base is that of its inputs only, and starts at the first
module that has a LoRA: what lies below needs none. Norms, activations and AdamW are left out; they are a hundredth.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorac.sd.unet import UNetConfig


@dataclass
class Flops:
    """Operations of one step, by what they are for."""

    frozen_forward: float = 0
    frozen_backward: float = 0
    lora_forward: float = 0
    lora_backward: float = 0

    @property
    def total(self) -> float:
        return self.frozen_forward + self.frozen_backward + self.lora_forward + self.lora_backward


def unet_step(sizes: UNetConfig, latent: tuple[int, int], batch: int, tokens: int, rank: int) -> Flops:
    """A step that trains kohya's 192 modules of a U-Net, with text states that need no gradient.

    `latent` is (height, width) of the latents, `tokens` the length of the text states.
    """
    return _Walk(sizes, batch, tokens, rank).unet(*latent)


class _Walk:
    """The U-Net's layers in the order in which they run. `flowing`: whether the input needs a gradient by now."""

    def __init__(self, sizes: UNetConfig, batch: int, tokens: int, rank: int) -> None:
        self.sizes, self.batch, self.tokens, self.rank = sizes, batch, tokens, rank
        self.flowing, self.flops = False, Flops()

    def unet(self, height: int, width: int) -> Flops:
        sizes = self.sizes
        widths = [sizes.width * m for m in sizes.multipliers]
        last = len(widths) - 1
        for inputs in (sizes.width, sizes.time):  # the MLP of the timestep: its rows are pictures
            self._product(self.batch, inputs, sizes.time, flowing=False)
        maps = [(height, width)]
        for _ in widths[1:]:
            maps.append(((maps[-1][0] + 1) // 2, (maps[-1][1] + 1) // 2))
        pixels = [self.batch * h * w for h, w in maps]
        self._conv(pixels[0], sizes.latent, widths[0])
        skips, channels = [widths[0]], widths[0]
        for level, outputs in enumerate(widths):
            for _ in range(sizes.resnets):
                self._resnet(pixels[level], channels, outputs)
                self._transformer(pixels[level], outputs, attend=level < last)
                channels = outputs
                skips.append(channels)
            if level < last:
                self._conv(pixels[level + 1], channels, channels)
                skips.append(channels)
        self._resnet(pixels[last], channels, channels)
        self._transformer(pixels[last], channels)
        self._resnet(pixels[last], channels, channels)
        for level in reversed(range(len(widths))):
            outputs = widths[level]
            for _ in range(sizes.resnets + 1):
                self._resnet(pixels[level], channels + skips.pop(), outputs)
                self._transformer(pixels[level], outputs, attend=level < last)
                channels = outputs
            if level:
                self._conv(pixels[level - 1], channels, channels)
        self._conv(pixels[0], channels, sizes.latent)
        return self.flops

    def _product(self, rows: int, inputs: int, outputs: int, flowing: bool) -> None:
        self.flops.frozen_forward += 2 * rows * inputs * outputs
        self.flops.frozen_backward += 2 * rows * inputs * outputs * flowing

    def _conv(self, pixels: int, inputs: int, outputs: int, side: int = 3) -> None:
        """`pixels` are those of the output."""
        self._product(pixels, side * side * inputs, outputs, self.flowing)

    def _resnet(self, pixels: int, inputs: int, outputs: int) -> None:
        self._product(self.batch, self.sizes.time, outputs, flowing=False)
        self._conv(pixels, inputs, outputs)
        self._conv(pixels, outputs, outputs)
        if inputs != outputs:
            self._conv(pixels, inputs, outputs, side=1)

    def _adapted(self, rows: int, inputs: int, outputs: int, flowing: bool) -> None:
        """A linear layer and its LoRA: forward x · down and · up; backward both factors, and the way to x."""
        self._product(rows, inputs, outputs, flowing)
        self.flops.lora_forward += 2 * rows * self.rank * (inputs + outputs)
        self.flops.lora_backward += 2 * rows * self.rank * (2 * outputs + inputs + inputs * flowing)

    def _transformer(self, pixels: int, channels: int, attend: bool = True) -> None:
        if not attend:
            return
        self._adapted(pixels, channels, channels, self.flowing)  # proj_in
        self.flowing = True
        context = self.batch * self.tokens
        for keys, width, flowing in ((pixels, channels, True), (context, self.sizes.context, False)):
            self._adapted(pixels, channels, channels, flowing=True)  # to_q
            self._adapted(keys, width, channels, flowing)  # to_k
            self._adapted(keys, width, channels, flowing)  # to_v
            self._attention(pixels, keys // self.batch, channels)
            self._adapted(pixels, channels, channels, flowing=True)  # to_out
        self._adapted(pixels, channels, 8 * channels, flowing=True)  # GEGLU's projection
        self._adapted(pixels, 4 * channels, channels, flowing=True)
        self._adapted(pixels, channels, channels, flowing=True)  # proj_out

    def _attention(self, rows: int, keys: int, channels: int) -> None:
        """Queries times keys, and weights times values; backward has two products for each."""
        self.flops.frozen_forward += 2 * 2 * rows * keys * channels
        self.flops.frozen_backward += 2 * 4 * rows * keys * channels
