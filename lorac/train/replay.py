"""What does the passes of a trainer: tapes on a CPU, graphs on a card; or neither, where a pass is done as it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeAlias

import torch

from lorac.train.cuda_graphs import Cuda, Graphs
from lorac.train.switches import Switches
from lorac.train.tape import Tapes

Replay: TypeAlias = Tapes | Graphs


def replay_for(
    device: torch.device,
    dtype: torch.dtype,
    switches: Switches,
    helper: Executor,
    *,
    fused: bool,
    merged: bool,
    room: int,
    recover: Callable[[], None],
    warn: Callable[[str], None],
) -> Replay:
    """For a base of `dtype` on `device`, whose networks are all `fused`, or `merged` too. Autograd's own gradients have
    no place of their own, and dropouts draw anew at each pass: those are done as they are. Tapes take at most `room`
    bytes, and so do graphs while another pass is done."""
    if device.type == "cuda":
        return Graphs(Cuda(device), switches.graphs and fused, room, recover, warn)
    usual = device.type == "cpu" and dtype == torch.float32  # tapes know no loss scale
    # While a step is recorded it takes half of them, and those that are recorded hold the other.
    return Tapes(helper, switches.tape and merged and usual, limit=room // 2, held=room // 2, warn=warn)
