"""The optimisers of other packages, and their state as tensors by kohya's names.

Each sees the factors of each module as parameters of their own, as in kohya-ss/sd-scripts: what Adafactor, Prodigy and
8-bit AdamW do with a tensor depends on where it begins and ends. The parameters are views of the stacked factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lorac.errors import InputError, Problem
from lorac.recipe.optimisers import OPTIMISERS, has_relative_step
from lorac.sd.lora_names import PARTS, Part
from lorac.train.optimiser import Optimisation, Optimiser


class Library(Optimiser):
    """One optimiser for all trained parts, with a parameter group for each learning rate."""

    def _prepare(self) -> None:
        lora = self._lora
        views = lora.named({factor: factor.detach() for factor in self._factors()})
        self.leaves = {name: nn.Parameter(view) for name, view in views.items()}
        self._groups: list[tuple[Part, float]] = []
        params = []
        for part in self._trained:
            for group in lora.groups(part):
                storages = {factor.untyped_storage().data_ptr() for factor in group.parameters}
                own = [leaf for leaf in self.leaves.values() if leaf.untyped_storage().data_ptr() in storages]
                self._groups.append((part, group.factor))
                params.append({"params": own})
        self.optimiser = _create(self._settings, params)

    def _update(self, divisor: Tensor | None, overflow: Tensor | None, rates: Mapping[Part, float]) -> None:
        if overflow is None or not overflow.item():
            self._hand_gradients(divisor)
            for group, (part, factor) in zip(self.optimiser.param_groups, self._groups, strict=True):
                if group["lr"] is not None:
                    group["lr"] = rates[part] * factor
            self.optimiser.step()
        for parameter in (*self.leaves.values(), *self._factors()):
            parameter.grad = None
        for stack in self._lora.stacks:
            if stack.part in self._trained:
                self._applied(stack)

    def _hand_gradients(self, divisor: Tensor | None) -> None:
        """Give each view a copy of its part of the stacked gradients: some optimisers write into them, and the stacked
        ones live in buffers whose zeros are kept from step to step."""
        copies = {}
        for factor in self._factors():
            gradient = torch.zeros_like(factor) if factor.grad is None else factor.grad
            copies[factor] = gradient.clone() if divisor is None else gradient / divisor
        for name, gradient in self._lora.named(copies).items():
            self.leaves[name].grad = gradient

    def averages(self) -> dict[nn.Parameter, Tensor] | None:
        """A schedule-free optimiser trains at one point and is used at another, the average of its path."""
        if not hasattr(self.optimiser, "eval"):
            return None
        trained = {factor: factor.detach().clone() for factor in self._factors()}
        self.optimiser.eval()
        averages = {factor: factor.detach().clone() for factor in self._factors()}
        with torch.no_grad():
            for factor, value in trained.items():
                factor.copy_(value)  # `train()` would come back to these only nearly
        for group in self.optimiser.param_groups:
            group["train_mode"] = True
        return averages

    def state(self) -> dict[str, Tensor]:
        """`tensor/KEY/NAME` and `number/KEY/NAME` of each factor, and `group/KEY/I` of each parameter group."""
        tensors: dict[str, Tensor] = {}
        for name, leaf in self.leaves.items():
            for key, value in self.optimiser.state.get(leaf, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"tensor/{key}/{name}"] = value
                elif value is not None:
                    tensors[f"number/{key}/{name}"] = _number(value)
        for index, group in enumerate(self.optimiser.param_groups):
            for key, value in group.items():
                if isinstance(value, (bool, int, float)):
                    tensors[f"group/{key}/{index}"] = _number(value)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimiser.state.clear()
        for path, tensor in tensors.items():
            kind, _, rest = path.partition("/")
            key, _, name = rest.partition("/")
            if kind == "group":
                self.optimiser.param_groups[int(name)][key] = tensor.item()
            elif kind in ("tensor", "number"):
                leaf = self.leaves[name]
                value = tensor.to(leaf.device, copy=True) if kind == "tensor" else tensor.item()
                self.optimiser.state[leaf][key] = value

    def _factors(self) -> list[nn.Parameter]:
        return [factor for part in PARTS for factor in self._lora.parameters(part)]


def check(settings: Optimisation) -> None:
    """Raises InputError if the optimiser's package is missing, or a setting has a value that it refuses."""
    _create(settings, [{"params": [nn.Parameter(torch.zeros(1))]}])


def _number(value: bool | int | float) -> Tensor:
    """A tensor whose `item()` is the same value of the same type."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _create(settings: Optimisation, groups: list[dict[str, Any]]) -> Any:
    """The optimiser; raises InputError if its package is missing, or a setting has a value that it refuses."""
    name, package = settings.optimizer, OPTIMISERS[settings.optimizer].package
    relative = has_relative_step(name, settings.optimizer_args)
    given = dict(settings.optimizer_args)
    if name == "adafactor":
        given["relative_step"] = relative
    try:
        # Learning rates are given at each step, those of Adafactor's relative steps never.
        optimiser = class_of(name)(groups, lr=None if relative else 1.0, **given, **settings.given("betas", "eps"))
    except ImportError as error:
        cause = f"the optimiser {name} needs the package {package}, which cannot be imported ({error})"
        raise InputError([Problem("optimizer in [train]", cause, f"pip install {package}")]) from error
    except ValueError as error:
        cause = f"the optimiser {name} refuses its settings: {error}"
        raise InputError([Problem("optimizer_args in [train]", cause, "give another value")]) from error
    for group in optimiser.param_groups:
        group.update(settings.given("weight_decay"))
    if hasattr(optimiser, "train"):
        optimiser.train()
    return optimiser


def class_of(name: str) -> Any:
    """The class of an optimiser by the recipe's name. Raises ImportError if its package is missing."""
    module, _, kind = OPTIMISERS[name].path.rpartition(".")
    return getattr(import_module(module), kind)
