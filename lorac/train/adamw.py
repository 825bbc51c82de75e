"""AdamW (Loshchilov & Hutter 2019) by torch's fused kernel, which divides gradients by a scale as it reads them.

`torch.optim.AdamW` calls the same kernel with the same arguments, and gives the same bits. Making one imports
`torch._dynamo` and sympy, which takes as long as importing torch itself, and each of its steps passes through hooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


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
        self._betas, self._eps, self._weight_decay = betas, eps, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            found: list[nn.Parameter] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if found:
                self._step(found, group["lr"])

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _step(self, parameters: list[nn.Parameter], lr: float) -> None:
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
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=self._eps,
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
