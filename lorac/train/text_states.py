"""The states of captions under a text encoder that is not trained, each computed once.

Shape suffixes: B batch, K chunks of a caption, L tokens, D text channels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from lorac.sd.clip import TextEncoder

LIMIT = 64 * 2**20
"""Bytes of states that are kept; those that were used longest ago go first."""


class TextStates:
    """Captions are computed one at a time, so that what is kept already never changes the bits. They are kept where the
    text encoder is, which may be on the CPU while the U-Net is on a card."""

    def __init__(self, text_encoder: TextEncoder, clip_skip: int, limit: int = LIMIT) -> None:
        self._text_encoder, self._clip_skip, self._limit = text_encoder, clip_skip, limit
        self._place = next(text_encoder.parameters()).device
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def of(self, ids_BKL: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(B, L, D) on `device`, a tensor of its own; ids are on the CPU."""
        states_BLD = torch.cat([self._of_one(ids_1KL) for ids_1KL in torch.split(ids_BKL, 1)])
        return _moved(states_BLD.to(dtype), device)

    def _of_one(self, ids_1KL: Tensor) -> Tensor:
        key = ids_1KL.numpy().tobytes()
        states_1LD = self._kept.get(key)
        if states_1LD is None:
            states_1LD = self._kept[key] = self._text_encoder(_moved(ids_1KL, self._place), self._clip_skip)
            while len(self._kept) * states_1LD.nbytes > self._limit and len(self._kept) > 1:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return states_1LD


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting for a card."""
    return (x.pin_memory() if x.is_cpu and device.type == "cuda" else x).to(device, non_blocking=True)
