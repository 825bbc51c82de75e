"""Which kernel computes attention on a card, and the choice among them by time.

`sdpa` leaves it to torch, `xformers` takes `memory_efficient_attention` (cutlass on Turing, flash from sm80 on), `math`
has the whole softmax in memory. `auto` times each kernel that can be had on numbers of each size, forward and backward,
once in a process: torch prefers kernels by the card's generation and not by the size, and SD1.x's heads (40, 80 and 160
channels) fit none of them well. Measured by `benchmarks/attention.py`.

Shape suffixes: B batch, N heads, L query tokens, S key tokens, D channels of one head.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorac.errors import InputError

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""`softmax(q kᵀ / √D) v` of (B, N, L, D), (B, N, S, D) and (B, N, S, D), under autograd: (B, N, L, D). The last
argument says that it is causal: a query sees the keys up to its own place."""

MATH_LIMIT = 2**19
"""Most numbers of a picture's softmax, N · L · S, for which `auto` tries `math`: those of 8 heads at 16 × 16. It keeps
them in float32, which plans of memory do not count."""
TOLERANCE = 0.02
"""Of the largest number: how far a kernel's results may be from those of torch's own choice, in float16."""
WARM, TIMED = 3, 10
_AHEAD = 20_000_000
"""Cycles for which a card waits while the passes are queued, so that not the queueing is timed: 10 to 20 ms."""


class Size(NamedTuple):
    """Of one attention, and where it is computed."""

    batch: int
    heads: int
    queries: int
    keys: int
    channels: int
    dtype: torch.dtype
    device: torch.device
    causal: bool = False

    def __str__(self) -> str:
        kind = "causal, " * self.causal + str(self.dtype).removeprefix("torch.")
        return f"{self.queries}×{self.keys}, {self.heads}·{self.channels}, batch {self.batch}, {kind}"


def _of_torch(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q_BNLD, k_BNSD, v_BNSD, is_causal=causal)


def _pinned(backend: SDPBackend) -> Kernel:
    def attend(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, causal: bool) -> Tensor:
        with sdpa_kernel(backend):
            return _of_torch(q_BNLD, k_BNSD, v_BNSD, causal)

    return attend


def _of_xformers(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, causal: bool) -> Tensor:
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    rows = (x.transpose(1, 2) for x in (q_BNLD, k_BNSD, v_BNSD))
    o_BLND: Tensor = memory_efficient_attention(*rows, attn_bias=LowerTriangularMask() if causal else None)
    return o_BLND.transpose(1, 2)


KERNELS: Mapping[str, Kernel] = {
    "sdpa": _of_torch,
    "flash": _pinned(SDPBackend.FLASH_ATTENTION),
    "efficient": _pinned(SDPBackend.EFFICIENT_ATTENTION),
    "cudnn": _pinned(SDPBackend.CUDNN_ATTENTION),
    "math": _pinned(SDPBackend.MATH),
    "xformers": _of_xformers,
}


def check(wanted: str, cuda: bool) -> None:
    """Raises InputError where xformers is asked for and cannot be had."""
    if wanted != "xformers":
        return
    if not cuda:
        cause = "xformers has no attention for a CPU, and this machine has no CUDA device"
        raise InputError.of("train.attention", cause, 'take attention out, or choose "auto"')
    try:
        import xformers.ops  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # the last two: built for another torch
        missing = find_spec("xformers") is None
        cause = "xformers is not installed" if missing else f"xformers cannot be loaded: {error}"
        remedy = 'pip install "lorac[gpu]", or choose attention = "auto"'
        raise InputError.of("train.attention", cause, remedy) from error


class Choice:
    """The kernels of one trainer. `chosen`: what `auto` has taken so far, by size.

    A size that is first met while a CUDA graph is captured gets torch's own choice: nothing can be timed there. So
    the pass before the capture decides.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.chosen: dict[str, str] = {}
        self._known: dict[Size, Kernel] = {}

    def attend(self, q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, causal: bool) -> Tensor:
        return self._kernel(q_BNLD, k_BNSD, causal)(q_BNLD, k_BNSD, v_BNSD, causal)

    def _kernel(self, q_BNLD: Tensor, k_BNSD: Tensor, causal: bool) -> Kernel:
        if q_BNLD.device.type != "cuda":  # without numbers, as on a card
            return _of_torch
        if self.wanted != "auto":
            return KERNELS[self.wanted]
        batch, heads, queries, channels = q_BNLD.shape
        size = Size(batch, heads, queries, k_BNSD.shape[2], channels, q_BNLD.dtype, q_BNLD.device, causal)
        if size not in self._known:
            if torch.cuda.is_current_stream_capturing():
                return _of_torch
            name = fastest(size)
            self.chosen[str(size)], self._known[size] = name, KERNELS[name]
        return self._known[size]


@cache
def fastest(size: Size) -> str:
    """The kernel that is quickest for a size, forward and backward together. Waits for the card."""
    times = timed(size, candidates(size))
    return min(times, key=times.__getitem__, default="sdpa")


def timed(size: Size, names: Iterable[str]) -> dict[str, float]:
    """Milliseconds, forward and backward, of those kernels that can be had for a size and are right."""
    given = (*numbers(size), size.causal)
    expected = results("sdpa", *given)
    found = {}
    for name in names:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # torch says why a kernel cannot be used
            try:
                if agree(expected, results(name, *given)):
                    found[name] = milliseconds(name, *given)
            except (RuntimeError, ImportError, OSError, NotImplementedError, ValueError):
                continue  # not for this card, size or installation
    return found


def candidates(size: Size) -> list[str]:
    """What `auto` tries, torch's own choice first."""
    names = ["sdpa", "flash", "efficient", "cudnn"]
    if size.heads * size.queries * size.keys <= MATH_LIMIT:
        names.append("math")
    return names + ["xformers"] * (find_spec("xformers") is not None)


def numbers(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as a step has them: heads are views of rows, and self-attention's lie side by side."""
    generator = torch.Generator().manual_seed(0)

    def heads(tokens: int, count: int) -> tuple[Tensor, ...]:
        x_BLKND = torch.randn(size.batch, tokens, count, size.heads, size.channels, generator=generator)
        return x_BLKND.to(size.device, size.dtype).permute(2, 0, 3, 1, 4).unbind()

    if size.queries == size.keys:
        q, k, v = heads(size.queries, 3)
    else:
        (q,), (k, v) = heads(size.queries, 1), heads(size.keys, 2)
    return q, k, v


def results(name: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, ...]:
    """(output, gradients of q, k and v) where the output's own is `q`."""
    with torch.enable_grad():
        leaves = q, k, v = [x.detach().requires_grad_() for x in (q, k, v)]
        o_BNLD = KERNELS[name](q, k, v, causal)
        return o_BNLD.detach(), *torch.autograd.grad(o_BNLD, leaves, q.detach())


def agree(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> bool:
    """Whether no number is wrong: some versions of cuDNN are, where keys are no multiple of 128."""
    return all(
        bool((x.float() - y.float()).abs().max() <= TOLERANCE * y.float().abs().max())
        for y, x in zip(expected, found, strict=True)
    )


def milliseconds(name: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> float:
    """For one pass forward and backward: a card's own time, or what has gone by on a CPU."""
    for _ in range(WARM):
        results(name, q, k, v, causal)
    return elapsed(lambda: results(name, q, k, v, causal), q.device)


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of `work`, the mean of several times."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(TIMED):
            work()
        return (time.perf_counter() - started) / TIMED * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(TIMED):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / TIMED
