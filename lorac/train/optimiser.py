"""AdamW on the LoRA's factors, with clipping and loss scaling, and its state by kohya's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS, Part
from lorac.train.loss_scale import LossScale

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Optimisation:
    """AdamW's settings; the defaults are kohya's. `max_grad_norm` 0 means that gradients are not clipped."""

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0


class Optimiser:
    """One AdamW for each trained part, so that each has its learning rate and can be applied beside other work.

    `apply` may return before the U-Net's factors are new; `settle` waits for that. `applied(part)` is called when a
    part's are.
    """

    def __init__(
        self,
        lora: LoRANetwork,
        trained: Sequence[Part],
        settings: Optimisation,
        loss_scale: LossScale,
        helper: Executor,
        applied: Callable[[Part], None],
    ) -> None:
        self._lora, self._settings, self._loss_scale = lora, settings, loss_scale
        self._helper, self._applied = helper, applied
        self._running: list[Future[None]] = []
        self.parts = {
            part: torch.optim.AdamW(
                lora.parameters(part),
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
                fused=True,
            )
            for part in trained
        }

    def apply(self, norm: Tensor, rates: Mapping[Part, float]) -> None:
        """Use and forget the gradients, whose total norm is `norm`: clip, unscale, AdamW.

        AdamW's kernel divides them by `grad_scale` as it reads them, and does nothing where `found_inf` is 1.
        """
        limit = self._settings.max_grad_norm
        scale, overflow = self._loss_scale.value, self._loss_scale.overflow(norm)
        excess = ((norm / scale + 1e-6) / limit).clamp(min=1.0) if limit else torch.ones_like(norm)
        divisor: Tensor | None = scale * excess
        if norm.device.type == "cpu" and divisor == 1.0:
            divisor = None  # a division by 1 would write all gradients once more
        for optimiser in self.parts.values():
            optimiser.grad_scale, optimiser.found_inf = divisor, overflow  # type: ignore[attr-defined]
        self._loss_scale.update(norm)
        # The U-Net's factors are wanted last: they are updated beside the next step's text encoder.
        if "unet" in self.parts:
            self._running.append(self._helper.submit(self._apply_to, "unet", rates["unet"]))
        if "text_encoder" in self.parts:
            self._apply_to("text_encoder", rates["text_encoder"])

    def _apply_to(self, part: Part, rate: float) -> None:
        optimiser = self.parts[part]
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self._applied(part)

    def settle(self) -> None:
        """Wait until everything is applied."""
        for update in self._running:
            update.result()
        self._running.clear()

    def state(self) -> dict[str, Tensor]:
        """The moments as `exp_avg/NAME` and `exp_avg_sq/NAME` with kohya's names, and the number of `updates`."""
        tensors = {
            f"{moment}/{name}": view
            for moment in MOMENTS
            for name, view in self._lora.named(self._moment(moment)).items()
        }
        counts = [values["step"] for adamw in self.parts.values() for values in adamw.state.values()]
        return tensors | {"updates": counts[0] if counts else torch.zeros(())}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        moments = {moment: self._moment(moment) for moment in MOMENTS}
        for moment, values in moments.items():
            for name, view in self._lora.named(values).items():
                view.copy_(tensors[f"{moment}/{name}"])
        for part, adamw in self.parts.items():
            for factor in self._lora.parameters(part):
                kept = {moment: values[factor] for moment, values in moments.items()}
                adamw.state[factor] = {"step": tensors["updates"].to(factor.device, copy=True), **kept}

    def _moment(self, moment: str) -> dict[nn.Parameter, Tensor]:
        """One of the moments for every factor; zeros before the first step and for a part that is not trained."""

        def of(part: Part, factor: nn.Parameter) -> Tensor:
            kept = self.parts[part].state.get(factor, {}) if part in self.parts else {}
            value: Tensor = kept.get(moment, torch.zeros_like(factor, requires_grad=False))
            return value

        return {factor: of(part, factor) for part in PARTS for factor in self._lora.parameters(part)}
