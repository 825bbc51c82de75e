"""The peak of one training step, by part, and what it costs in time."""

from __future__ import annotations

from dataclasses import dataclass

from lorac.train.memory.blas import workspaces
from lorac.train.memory.run import TEXT_STATES, Plan, Run
from lorac.train.memory.shapes import TOKENS, factors
from lorac.train.memory.step import activations
from lorac.train.memory.work import work
from lorac.train.switches import Recompute

CONTEXT = 450 * 10**6
"""What CUDA, cuBLAS and cuDNN take beside torch's allocator: assumed, as drivers and cards differ; 300 to 600 MB are
reported."""
PROCESS = 420 * 10**6
"""Python with torch and transformers on a CPU: resident set after the imports, torch 2.13."""
MOMENTS = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256, "lion": 4.0, "prodigy": 16.0, "adamw_schedule_free": 8.0}
"""Bytes that an optimiser remembers of each number it trains; 8-bit states have two float32 for each 256 of them.
Adafactor's are a row and a column of each matrix, next to nothing."""
COPIES = ("lion", "prodigy", "adamw8bit", "adafactor", "adamw_schedule_free")
"""Optimisers of other packages get a copy of the gradients."""


@dataclass(frozen=True)
class Prediction:
    """Bytes by part (captions: the states of those that were seen, at most); work in multiplications (with their
    additions) that take as long as the step."""

    weights: int
    lora: int
    gradients: int
    optimiser: int
    activations: int
    workspace: int
    blas: int
    captions: int
    context: int
    work: float

    @property
    def parts(self) -> dict[str, int]:
        names = ("weights", "lora", "gradients", "optimiser", "activations", "workspace", "blas", "captions", "context")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def predict(run: Run, plan: Plan) -> Prediction:
    sizes = run.sizes
    stored = len(run.networks) * factors(sizes, run.ranks)
    kept, peak, scratch, copies = activations(run, plan)
    text = 0 if plan.away else sizes.text_weights()
    # The optimiser's turn comes when nothing is kept from forward any more; but CUDA graphs keep all their memory.
    trained = max(factors(sizes, network) for network in run.networks)
    copied = 4 * trained if run.optimizers.intersection(COPIES) else 0
    moments = max(MOMENTS.get(optimizer, 0.0) for optimizer in run.optimizers)
    peak = peak + copied if run.cuda else max(peak, copied)
    return Prediction(
        weights=(sizes.unet_weights() + text) * run.element + copies + _merged(run),
        lora=stored * (4 + (run.element if copies_factors(run, plan) else 0)),
        gradients=stored * 4,
        optimiser=round(stored * (moments + (4 if run.ema else 0))),
        activations=kept,
        workspace=peak - kept + scratch,
        blas=run.blas * workspaces(run.text, plan.away),
        captions=_captions(run, plan),
        context=CONTEXT if run.cuda else PROCESS,
        work=work(run, plan),
    )


def copies_factors(run: Run, plan: Plan) -> bool:
    """Whether factors are held in the base's precision too; else that is made of each when it is read."""
    return run.cuda and not run.merged and plan.recompute < Recompute.TRANSFORMER


def _merged(run: Run) -> int:
    """The merged form holds the adapted weights side by side, and of each network the merged ones and dW."""
    adapted = sum(outputs * inputs for outputs, inputs in map(run.sizes.module, run.networks[0]))
    return adapted * run.element * (1 + 2 * len(run.networks)) if run.merged else 0


def _captions(run: Run, plan: Plan) -> int:
    """Of a text encoder that is not trained; if it is away, so are they."""
    if run.text or plan.away:
        return 0
    one = TOKENS * run.chunks * run.sizes.context * run.element
    return TEXT_STATES if run.captions is None else min(TEXT_STATES, run.captions * one)
