"""AdamW (Loshchilov & Hutter 2019) by kernels that divide gradients by a scale as they read them.

On a card with Triton it is the kernel of `kernels/adamw.py`, elsewhere torch's fused one. `torch.optim.AdamW` calls the
latter with the same arguments, and gives the same bits. Making one imports `torch._dynamo` and sympy, which takes as
long as importing torch itself, and each of its steps passes through hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lorac.kernels import adamw as kernels
from lorac.kernels import gate

NO_COPIES: Mapping[Tensor, Tensor] = MappingProxyType({})


class FusedAdamW:
    """AdamW on groups of parameters, each with its own "lr".

    state: of each parameter that has had a gradient, "step" (a scalar), "exp_avg" and "exp_avg_sq". What gradients are
    divided by is `grad_scale`; where `found_inf` is 1, a step changes nothing. Both may be None.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self.param_groups = list(groups)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        self._settings = kernels.Settings(betas, eps, weight_decay)

    @torch.no_grad()
    def step(self, copies: Mapping[Tensor, Tensor] = NO_COPIES) -> None:
        """Update the parameters that have gradients, and their `copies`, of another dtype."""
        for group in self.param_groups:
            found: list[nn.Parameter] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if found and gate.opens(found[0], "adamw"):
                for parameter in found:
                    self._by_own_kernel(parameter, group["lr"], copies.get(parameter))
            elif found:
                self._by_torch(found, group["lr"])
                for parameter in found:
                    if parameter in copies:
                        copies[parameter].copy_(parameter)

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _by_own_kernel(self, parameter: nn.Parameter, lr: float, copy: Tensor | None) -> None:
        state, gradient = self._state(parameter), parameter.grad
        assert gradient is not None
        moments = [state[moment].view(-1) for moment in ("exp_avg", "exp_avg_sq")]
        flat = kernels.Flat(parameter.view(-1), *moments, state["step"], None if copy is None else copy.view(-1))
        kernels.adamw(flat, gradient.contiguous().view(-1), lr, self.grad_scale, self.found_inf, self._settings)

    def _by_torch(self, parameters: list[nn.Parameter], lr: float) -> None:
        tensors: list[Tensor] = [*parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self._state(parameter) for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            tensors,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            amsgrad=False,
            lr=lr,
            beta1=self._settings.betas[0],
            beta2=self._settings.betas[1],
            weight_decay=self._settings.weight_decay,
            eps=self._settings.eps,
            maximize=False,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]
