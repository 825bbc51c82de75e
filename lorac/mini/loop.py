"""The training loop of the embedded base: AdamW, warm-up and cosine, averaged weights, resume from safetensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
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
"""`loss_at(step, part)`: the mean loss of one part of a step's batch, which it draws itself. With several parts it is
pickled, and its model with it."""


def train(trainee: Trainee, loss_at: LossAt, show: Callable[[int], None], path: Path, parts: int) -> None:
    """Runs the plan, from `path` where it exists. `show(step)` writes pictures, with the averaged weights in place.

    A step's batch is the mean over `parts` processes of one core each, which share the weights. As threads they waited
    for the interpreter's lock: a step of the U-Net took 1.15 s on four cores, where it takes 0.9 s with processes. With
    one part all is as usual (and that part gets CUDA).
    """
    with Gradients(trainee, loss_at, parts) as gradients, ThreadPoolExecutor(parts, initializer=_one_core) as pool:
        trainee.muon.pool, trainee.muon.parts = pool, parts
        _train(trainee, gradients, show, path)


def _one_core() -> None:
    torch.set_num_threads(1)


class Gradients:
    """Puts the gradients of a step into the parameters, and the processes that compute them."""

    def __init__(self, trainee: Trainee, loss_at: LossAt, parts: int) -> None:
        self._trainee, self._loss_at = trainee, loss_at
        self._pipes: list[Connection] = []
        if parts == 1:
            return
        trainee.model.share_memory()
        size = sum(p.numel() for p in trainee.named.values())
        self._flat_PN: Tensor = torch.zeros(parts, size).share_memory_()  # type: ignore[no-untyped-call]
        context = multiprocessing.get_context("spawn")
        for part in range(parts):
            ours, theirs = context.Pipe()
            arguments = (trainee.model, loss_at, part, self._flat_PN, theirs)
            context.Process(target=_compute, args=arguments, daemon=True).start()
            theirs.close()  # so that the pipe ends with the process
            self._pipes.append(ours)

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()

    def of(self, step: int) -> float:
        """Sets every `grad`; returns the loss."""
        parameters = list(self._trainee.named.values())
        if not self._pipes:
            loss = self._loss_at(step, 0)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            return loss.item()
        for pipe in self._pipes:
            pipe.send(step)
        losses = [pipe.recv() for pipe in self._pipes]
        pieces = torch.split(self._flat_PN.mean(0), [p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return math.fsum(losses) / len(losses)


def _compute(model: nn.Module, loss_at: LossAt, part: int, flat_PN: Tensor, pipe: Connection) -> None:
    """A process: for each step that comes through the pipe, the gradients of one part, and back its loss."""
    _one_core()
    parameters = [p for p in model.parameters() if p.requires_grad]
    places = torch.split(flat_PN[part], [p.numel() for p in parameters])
    with suppress(EOFError):
        while True:
            loss = loss_at(pipe.recv(), part)
            for place, gradient in zip(places, torch.autograd.grad(loss, parameters), strict=True):
                place.view_as(gradient).copy_(gradient)
            pipe.send(loss.item())


def _train(trainee: Trainee, gradients: Gradients, show: Callable[[int], None], path: Path) -> None:
    plan = trainee.plan
    if path.exists():
        trainee.load(path)
        print(f"resumed at step {trainee.step}", flush=True)
    total, count, since, first, start = 0.0, 0, time.perf_counter(), trainee.step, time.perf_counter()
    while trainee.step < plan.steps:
        for optimiser in trainee.optimisers:
            optimiser.param_groups[0]["lr"] = plan.rate(trainee.step)
        total, count = total + gradients.of(trainee.step), count + 1
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
