"""Pictures to latents in the precision of a device, and in float32 where that is not enough.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from lorac.sd.device import Device
from lorac.sd.vae import VAE


class Encoder:
    """A VAE on a device. `load` makes it in a precision.

    In float16 a VAE may overflow at some pictures: those are encoded again in float32. The others are not touched, so
    that none depends on its company.
    """

    def __init__(self, load: Callable[[torch.dtype], VAE], device: Device) -> None:
        self._load, self._device = load, device
        self._vae = self._loaded(device.dtype)

    @torch.inference_mode()
    def __call__(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """(mean, log-variance) in float32 of pixels in [-1, 1], and which pictures took float32 to be numbers. Those
        that are none in float32 either are returned as they are."""
        mean_BCHW, logvar_BCHW = self._encoded(self._vae, x_BCHW)
        if self._device.dtype == torch.float32:
            return mean_BCHW, logvar_BCHW, []
        finite_B = (torch.isfinite(mean_BCHW) & torch.isfinite(logvar_BCHW)).flatten(1).all(dim=1)
        again = [index for index, finite in enumerate(finite_B.tolist()) if not finite]
        for index in again:
            one = slice(index, index + 1)
            mean_BCHW[one], logvar_BCHW[one] = self._encoded(self._exact, x_BCHW[one])
        return mean_BCHW, logvar_BCHW, again

    def _encoded(self, vae: VAE, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BCHW, logvar_BCHW = vae.encode(x_BCHW.to(self._device.name, vae.quant_conv.weight.dtype))
        return mean_BCHW.float(), logvar_BCHW.float()

    @cached_property
    def _exact(self) -> VAE:
        return self._loaded(torch.float32)

    def _loaded(self, dtype: torch.dtype) -> VAE:
        return self._load(dtype).to(self._device.name).requires_grad_(False)
