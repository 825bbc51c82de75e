"""Updates of the LoRA's factors: clipping and loss scaling, and AdamW with its state by kohya's names.

`library` has the optimisers of other packages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS, Part
from lorac.sd.lora_stack import Stack
from lorac.train.adamw import FusedAdamW
from lorac.train.loss_scale import LossScale
from lorac.train.survive import UpdateLost, is_out_of_memory

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Optimisation:
    """How factors change, under the recipe's names; None stands for the optimiser's own value.

    `max_grad_norm` 0 means that gradients are not clipped, `ema_decay` 0 that nothing is averaged.
    """

    optimizer: str = "adamw"
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    scale_weight_norms: float | None = None

    @classmethod
    def of(cls, network: Mapping[str, Any], train: Mapping[str, Any]) -> Optimisation:
        """From the sections of a train node's params, which hold more than this."""
        given = {**network, **train}
        return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named settings that are not left to the optimiser."""
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class Optimiser(ABC):
    """What all optimisers share. `applied(stack)` is called when a stack's factors are new and what layers read is not;
    `helper` may do work beside the caller's."""

    def __init__(
        self,
        lora: LoRANetwork,
        trained: Sequence[Part],
        settings: Optimisation,
        loss_scale: LossScale,
        applied: Callable[[Stack], None],
        helper: Executor,
    ) -> None:
        self._lora, self._trained, self._settings, self._loss_scale = lora, trained, settings, loss_scale
        self._applied, self._helper = applied, helper
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Make the package's optimisers."""

    def apply(self, norm: Tensor, rates: Mapping[Part, float]) -> None:
        """Use and forget the gradients, whose total norm is `norm`: clip, unscale, update."""
        limit = self._settings.max_grad_norm
        scale, overflow = self._loss_scale.value, self._loss_scale.overflow(norm)
        excess = ((norm / scale + 1e-6) / limit).clamp(min=1.0) if limit else torch.ones_like(norm)
        divisor: Tensor | None = scale * excess
        if norm.device.type == "cpu" and divisor == 1.0:
            divisor = None  # a division by 1 would write all gradients once more
        self._loss_scale.update(norm)
        self._update(divisor, overflow, rates)

    @abstractmethod
    def _update(self, divisor: Tensor | None, overflow: Tensor | None, rates: Mapping[Part, float]) -> None:
        """Change the factors by their gradients over `divisor`, unless `overflow` is 1."""

    def settle(self) -> None:  # noqa: B027 — most have nothing to wait for
        """Wait until everything is applied."""

    def averages(self) -> dict[nn.Parameter, Tensor] | None:
        """The factors to be used outside of training, where those are others."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that it remembers, by names that contain kohya's; none begins with `lora_`."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""


class AdamW(Optimiser):
    """One AdamW for each trained stack, so that each can be applied, and merged, beside other work.

    `apply` may return before the U-Net's factors are new; `settle` waits for that.
    """

    def _prepare(self) -> None:
        self._running: list[tuple[Future[None], Callable[[], None]]] = []
        own = self._settings.given("weight_decay", "betas", "eps")
        self.parts = {
            part: {stack: FusedAdamW(groups, **own) for stack, groups in _groups(self._lora, part)}
            for part in self._trained
        }

    def _update(self, divisor: Tensor | None, overflow: Tensor | None, rates: Mapping[Part, float]) -> None:
        self.settle()  # which a captured pass leaves out
        # AdamW's kernel divides gradients by `grad_scale` as it reads them, and does nothing where `found_inf` is 1.
        updates = {
            part: [partial(self._apply_to, stack, adamw, rates[part]) for stack, adamw in stacks.items()]
            for part, stacks in self.parts.items()
        }
        for stacks in self.parts.values():
            for adamw in stacks.values():
                adamw.grad_scale, adamw.found_inf = divisor, overflow
        # The U-Net's factors are wanted last: they are updated beside the next step's text encoder.
        self._running += [(self._helper.submit(update), update) for update in updates.get("unet", [])]
        for update in updates.get("text_encoder", []):
            update()

    def _apply_to(self, stack: Stack, adamw: FusedAdamW, rate: float) -> None:
        for group in adamw.param_groups:
            group["lr"] = rate * group["factor"]
        adamw.step(stack.copies)
        adamw.zero_grad()
        if not stack.copies:
            self._applied(stack)

    def settle(self) -> None:
        while self._running:
            # What the helper has not begun is done here, from the end of its queue.
            running, update = self._running.pop()
            try:
                if running.cancel():
                    update()
                else:
                    running.result()
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise UpdateLost(str(error)) from None
                raise

    def state(self) -> dict[str, Tensor]:
        """The moments as `exp_avg/NAME` and `exp_avg_sq/NAME` with kohya's names, and the number of `updates`."""
        tensors = {
            f"{moment}/{name}": view
            for moment in MOMENTS
            for name, view in self._lora.named(self._moment(moment)).items()
        }
        counts = [values["step"] for adamw in self._all() for values in adamw.state.values()]
        return tensors | {"updates": counts[0] if counts else torch.zeros(())}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        moments = {moment: self._moment(moment) for moment in MOMENTS}
        for moment, values in moments.items():
            for name, view in self._lora.named(values).items():
                view.copy_(tensors[f"{moment}/{name}"])
        for adamw in self._all():
            for group in adamw.param_groups:
                for factor in group["params"]:
                    kept = {moment: values[factor] for moment, values in moments.items()}
                    adamw.state[factor] = {"step": tensors["updates"].to(factor.device, copy=True), **kept}

    def _all(self) -> list[FusedAdamW]:
        return [adamw for stacks in self.parts.values() for adamw in stacks.values()]

    def _moment(self, moment: str) -> dict[nn.Parameter, Tensor]:
        """One of the moments for every factor; zeros before the first step and for a part that is not trained."""

        states = {factor: state for adamw in self._all() for factor, state in adamw.state.items()}

        def of(factor: nn.Parameter) -> Tensor:
            value: Tensor = states.get(factor, {}).get(moment, torch.zeros_like(factor, requires_grad=False))
            return value

        return {factor: of(factor) for part in PARTS for factor in self._lora.parameters(part)}


def _groups(lora: LoRANetwork, part: Part) -> list[tuple[Stack, list[dict[str, Any]]]]:
    """Of each stack, torch's parameter groups; `factor` is on the part's learning rate."""
    factors = {parameter: group.factor for group in lora.groups(part) for parameter in group.parameters}
    return [
        (stack, [{"params": [parameter], "factor": factors[parameter]} for parameter in stack.parameters()])
        for stack in lora.stacks
        if stack.part == part
    ]
