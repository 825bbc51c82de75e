"""The training loop of the embedded base: AdamW, warm-up and cosine, averaged weights, resume from safetensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorac.errors import TrainingDiverged
from lorac.mini.muon import Muon

STATE_KEYS = {Muon: ("exp_avg",), torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq")}
"""What each optimiser keeps for a parameter."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn. `every` values are in steps."""

    steps: int
    lr: float
    warmup: int
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.01
    clip: float = 1.0
    averaging: float = 0.998
    average_every: int = 4
    save_every: int = 250
    log_every: int = 25
    show_every: int = 1000

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then half a cosine to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


class Trainee:
    """A model with its optimiser and the running average of its weights; `step` is the next step to do."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model, self.plan, self.step = model, plan, 0
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        matrices = [p for name, p in self.named.items() if p.dim() > 1 and "embedding" not in name]
        others = [p for name, p in self.named.items() if p.dim() <= 1 or "embedding" in name]
        self.muon = Muon(matrices, plan.lr, decay=plan.decay)
        self.adam = torch.optim.AdamW(others, plan.lr, plan.betas, weight_decay=0.0, fused=True)
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adam)

    def save(self, path: Path) -> None:
        """Writes everything that the next step depends on."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            tensors[f"weight.{name}"] = parameter.detach()
            tensors[f"average.{name}"] = self.average[name]
            for optimiser in self.optimisers:
                for key, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"{key}.{name}"] = value
        part = path.with_suffix(".part")
        save_file(tensors, part, {"step": str(self.step)})
        part.replace(path)

    def load(self, path: Path) -> None:
        """Continues from a file of `save`."""
        with safe_open(path, "pt") as file, torch.no_grad():
            self.step = int(file.metadata()["step"])
            names = {parameter: name for name, parameter in self.named.items()}
            for name, parameter in self.named.items():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
            for optimiser in self.optimisers:
                keys = STATE_KEYS[type(optimiser)]
                for parameter in optimiser.param_groups[0]["params"]:
                    name = names[parameter]
                    optimiser.state[parameter] = {
                        key: file.get_tensor(f"{key}.{name}").to(parameter.device) for key in keys
                    }

    def use_average(self) -> None:
        """Exchanges the weights and their running average."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                kept = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(kept)

    def follow(self) -> None:
        """Moves the running average; it starts fast so that it forgets the first weights."""
        keep = min(self.plan.averaging, (1 + self.step) / (10 + self.step)) ** self.plan.average_every
        weights = [p.detach() for p in self.named.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - keep)


LossAt = Callable[[int, int], Tensor]
"""`loss_at(step, part)`: the mean loss of one part of a step's batch, which it draws itself."""


def train(trainee: Trainee, loss_at: LossAt, show: Callable[[int], None], path: Path, parts: int) -> None:
    """Runs the plan, from `path` where it exists. `show(step)` writes pictures, with the averaged weights in place.

    A step's batch is the mean over `parts` threads of one core each: at this width that is 1.5 times as fast as one
    batch whose every operation is spread over the cores. With one part all is as usual (and that part gets CUDA).
    """
    with ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        trainee.muon.pool, trainee.muon.parts = pool, parts
        _train(trainee, loss_at, show, path, parts, pool)


def _backward(trainee: Trainee, loss_at: LossAt, parts: int, pool: Executor) -> float:
    """Puts the gradient of one step into the parameters and returns the loss."""
    parameters = list(trainee.named.values())

    def run(part: int) -> tuple[float, list[Tensor]]:
        loss = loss_at(trainee.step, part)
        return loss.item(), list(torch.autograd.grad(loss / parts, parameters))

    losses, gradients = zip(*pool.map(run, range(parts)), strict=True)
    for other in gradients[1:]:
        torch._foreach_add_(gradients[0], other)
    for parameter, gradient in zip(parameters, gradients[0], strict=True):
        parameter.grad = gradient
    return math.fsum(losses) / parts


def _train(
    trainee: Trainee, loss_at: LossAt, show: Callable[[int], None], path: Path, parts: int, pool: Executor
) -> None:
    plan = trainee.plan
    if path.exists():
        trainee.load(path)
        print(f"resumed at step {trainee.step}", flush=True)
    total, count, since, first, start = 0.0, 0, time.perf_counter(), trainee.step, time.perf_counter()
    while trainee.step < plan.steps:
        for optimiser in trainee.optimisers:
            optimiser.param_groups[0]["lr"] = plan.rate(trainee.step)
        total, count = total + _backward(trainee, loss_at, parts, pool), count + 1
        norm = nn.utils.clip_grad_norm_(trainee.named.values(), plan.clip)
        for optimiser in trainee.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        trainee.step += 1
        if not math.isfinite(total):
            raise TrainingDiverged(f"the loss of step {trainee.step} is not a number; lower the learning rate")
        if trainee.step % plan.average_every == 0:
            trainee.follow()
        if trainee.step % plan.log_every == 0:
            now = time.perf_counter()
            left = (plan.steps - trainee.step) * (now - start) / (trainee.step - first)
            print(
                f"{time.strftime('%H:%M:%S')} step {trainee.step}/{plan.steps} loss {total / count:.4f} "
                f"norm {float(norm):.2f} {(now - since) / count * 1e3:.0f} ms/step, {left / 60:.1f} min left",
                flush=True,
            )
            total, count, since = 0.0, 0, now
        if trainee.step % plan.save_every == 0 or trainee.step == plan.steps:
            trainee.save(path)
        if trainee.step % plan.show_every == 0 or trainee.step == plan.steps:
            trainee.use_average()
            show(trainee.step)
            trainee.use_average()
