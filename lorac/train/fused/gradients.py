"""Gradients of LoRA factors, from what each layer saw and what came back to it.

A layer `y = x (W + s · up · down)ᵀ` with input rows x and gradient rows dy has dW = dyᵀ x, and

    d_up = s · dW downᵀ = s · dyᵀ (x downᵀ),   d_down = s · upᵀ dW = (s · dy up)ᵀ x.

Through dW it takes fewer multiplications where rows and ranks are many and layers narrow. In both ways layers are
recorded and a whole stack is done at once; but where a layer has many rows, it is done at once and nothing of it kept.

Shape suffixes: N networks, M modules of a stack, K neighbouring modules with one input, L rows of one network,
O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lorac.train.fused.joint import JointStack
from lorac.train.fused.products import accumulate, batches, beside

FEW_ROWS = 128
"""Up to so many rows, a product over a whole stack is faster than one for each layer, and recording costs little."""

PIECE = 2**24
"""Multiplications that are worth handing over before a stack of merged modules is complete: half a millisecond."""


class _Record(NamedTuple):
    """Modules from `first` on saw `x` (N, L, I) and got `dy` (K, N, L, O); `middles`: s · x downᵀ and s · dy up
    (K, N, L, R), if they are known."""

    first: int
    x: Tensor
    dy: Tensor
    middles: tuple[Tensor, Tensor] | None


class StackGradients:
    """Makes the gradients of a stack's factors during one backward pass.

    They live in buffers that are written anew each time, or added to where `accumulating` is set before the backward
    pass; a module without a record gets zeros. `on_ready` is called when records are worth a `piece` of work, and when
    all modules are recorded.
    """

    def __init__(self, stack: JointStack, on_ready: Callable[[StackGradients], None]) -> None:
        self.stack, self._on_ready = stack, on_ready
        self._down_NMRI, self._up_NMOR = torch.zeros_like(stack.down_NMRI), torch.zeros_like(stack.up_NMOR)
        # Modules first: those of one record, or a module of all networks, lie together.
        self._weight_MNOI = torch.zeros_like(stack.merged_NMOI.transpose(0, 1), memory_format=torch.contiguous_format)
        self._records: list[_Record] = []
        self._done: set[int] = set()
        self._given: set[int] = set()
        self.accumulating = False

    @property
    def complete(self) -> bool:
        """Whether all modules are recorded."""
        return len(self._done) == len(self.stack.layers)

    def record(
        self, first: int, x_NLI: Tensor, dy_KNLO: Tensor, middles_KNLR: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """What modules from `first` on saw and got back, of any memory order; must stay unchanged until their piece is
        done. `middles`: s · x downᵀ and s · dy up, from the added form.
        """
        self._done.update(range(first, first + len(dy_KNLO)))
        if middles_KNLR and x_NLI.shape[1] > FEW_ROWS:
            self._layer(first, x_NLI, dy_KNLO, middles_KNLR)
        else:
            self._records.append(_Record(first, x_NLI, dy_KNLO, middles_KNLR))
        if self.complete or (self.stack.merged and self._is_piece(x_NLI.shape[1])):
            self._on_ready(self)

    def forget(self) -> None:
        """Drop the records of a pass that was not finished."""
        self._records, self._done, self._given = [], set(), set()

    def piece(self, last: bool = False) -> Callable[[], list[Tensor]]:
        """Work, for any thread, that makes the gradients of what is recorded by now, and returns of each network the
        norms of these. The `last` piece, or that of the last record, sets `grad` of both factors of all stacks."""
        records, last = self._records, last or self.complete
        missing = sorted(set(range(len(self.stack.layers))) - self._done) if last and not self.accumulating else []
        modules = set(range(len(self.stack.layers))) - self._given if last else _modules(records)
        runs, self._records = _runs(sorted(modules)), []
        self._given |= modules
        if last:
            self.forget()
        return partial(self._do, records, missing, runs, last)

    def finish(self) -> list[Tensor]:
        """Do the last piece."""
        return self.piece(last=True)()

    @torch.no_grad()
    def _do(self, records: list[_Record], missing: list[int], runs: list[slice], last: bool) -> list[Tensor]:
        if records and self.stack.merged and self._is_dense(records[0].x.shape[1]):
            self._through_weights(records)
        elif records:
            self._through_rank(records)
        for module in missing:
            self._down_NMRI[:, module].zero_()
            self._up_NMOR[:, module].zero_()
        norms = []
        for stack, down_MRI, up_MOR in zip(self.stack.stacks, self._down_NMRI, self._up_NMOR, strict=True):
            if last:
                stack.down_MRI.grad, stack.up_MOR.grad = down_MRI, up_MOR
            parts = [part[run] for run in runs for part in (down_MRI, up_MOR)]
            norms.append(torch.stack([torch.linalg.vector_norm(part) for part in parts]))
        return norms

    def _is_piece(self, rows: int) -> bool:
        """Whether what is recorded is worth handing over, and lies together."""
        modules = _modules(self._records)
        work = len(self.stack) * len(modules) * min(self._multiplications(rows))
        return work >= PIECE and len(_runs(sorted(modules))) == 1

    def _is_dense(self, rows: int) -> bool:
        """Whether the way through dW takes fewer multiplications than the way through the rank."""
        through_weights, through_rank = self._multiplications(rows)
        return through_weights <= through_rank

    def _multiplications(self, rows: int) -> tuple[int, int]:
        """Of one module: through dW, and through the rank."""
        outputs, rank = self._up_NMOR.shape[2:]
        inputs = self._down_NMRI.shape[3]
        return inputs * outputs * (rows + 2 * rank), 2 * rows * rank * (inputs + outputs)

    def _through_weights(self, records: list[_Record]) -> None:
        for first, x_NLI, dy_KNLO, _ in records:
            weight_KNOI = self._weight_MNOI[first : first + len(dy_KNLO)]
            if len(x_NLI) == 1:
                torch.mm(beside(dy_KNLO)[0].t(), x_NLI[0], out=weight_KNOI.flatten(0, 2))
                continue
            for weight_NOI, dy_NLO in zip(weight_KNOI, dy_KNLO, strict=True):
                torch.bmm(dy_NLO.mT, x_NLI, out=weight_NOI)
        beta = int(self.accumulating)
        for run in _runs(sorted(_modules(records))):
            for n, stack in enumerate(self.stack.stacks):
                weight_MOI, down_MRI, up_MOR = self._weight_MNOI[run, n].float(), stack.down_MRI[run], stack.up_MOR[run]
                d_down_MRI, d_up_MOR = self._down_NMRI[n, run], self._up_NMOR[n, run]
                torch.baddbmm(d_up_MOR, weight_MOI, down_MRI.mT, beta=beta, alpha=stack.scale, out=d_up_MOR)
                torch.baddbmm(d_down_MRI, up_MOR.mT, weight_MOI, beta=beta, alpha=stack.scale, out=d_down_MRI)

    def _through_rank(self, records: list[_Record]) -> None:
        # Only the last layers of a text encoder can be missing (clip skip), so the recorded modules are neighbours.
        records = sorted(records, key=lambda record: record.first)
        recorded = slice(records[0].first, records[-1].first + len(records[-1].dy))
        middles = [record.middles for record in records if record.middles]
        beta = int(self.accumulating)
        for n, stack in enumerate(self.stack.stacks):
            x_MLI = torch.stack([record.x[n] for record in records for _ in record.dy])
            dy_MLO = torch.stack([dy_NLO[n] for record in records for dy_NLO in record.dy])
            d_down_MRI, d_up_MOR = self._down_NMRI[n, recorded], self._up_NMOR[n, recorded]
            if middles:
                middle_MLR, dmiddle_MLR = (torch.cat([x[:, n] for x in xs]) for xs in zip(*middles, strict=True))
                accumulate(d_up_MOR, dy_MLO.mT, middle_MLR, self.accumulating)
                accumulate(d_down_MRI, dmiddle_MLR.mT, x_MLI, self.accumulating)
                continue
            x_MLI, dy_MLO = x_MLI.float(), dy_MLO.float()
            middle_MLR, dmiddle_MLR = x_MLI @ stack.down_MRI[recorded].mT, dy_MLO @ stack.up_MOR[recorded]
            torch.baddbmm(d_up_MOR, dy_MLO.mT, middle_MLR, beta=beta, alpha=stack.scale, out=d_up_MOR)
            torch.baddbmm(d_down_MRI, dmiddle_MLR.mT, x_MLI, beta=beta, alpha=stack.scale, out=d_down_MRI)

    def _layer(self, first: int, x_NLI: Tensor, dy_KNLO: Tensor, middles_KNLR: tuple[Tensor, Tensor]) -> None:
        """The gradients of one layer's modules, at once."""
        middle_KNLR, dmiddle_KNLR = middles_KNLR
        modules = slice(first, first + len(dy_KNLO))
        d_up_KNOR = self._up_NMOR[:, modules].transpose(0, 1)
        for at in batches(*dy_KNLO.shape[:2]):
            accumulate(d_up_KNOR[at], dy_KNLO[at].mT, middle_KNLR[at], self.accumulating)
        d_down_NMI = self._down_NMRI[:, modules].flatten(1, 2)
        accumulate(d_down_NMI, beside(dmiddle_KNLR).mT, x_NLI, self.accumulating)


def _modules(records: list[_Record]) -> set[int]:
    return {first + i for first, _, dy_KNLO, _ in records for i in range(len(dy_KNLO))}


def _runs(modules: list[int]) -> list[slice]:
    """Ascending numbers as ranges."""
    runs: list[slice] = []
    for module in modules:
        if runs and runs[-1].stop == module:
            runs[-1] = slice(runs[-1].start, module + 1)
        else:
            runs.append(slice(module, module + 1))
    return runs
