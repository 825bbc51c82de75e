"""How the U-Net's error becomes a number: measure, mask, and weights by timestep.

The formulas and their order are those of kohya-ss/sd-scripts (`conditional_loss`, `get_huber_threshold_if_needed`,
`custom_train_functions.py`). Shape suffixes: B batch, C channels, H height, W width, T all timesteps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lorac.kernels import gate
from lorac.kernels import loss as kernels
from lorac.sd.noise import STEPS, alphas_cumprod, snr

MOST_SNR = 1000.0
"""kohya's bound on the SNR in all weights but min-SNR's, against timesteps without noise."""


@dataclass(frozen=True)
class Loss:
    """[loss]'s settings of the error under the recipe's names, and what the base predicts; the default is plain l2."""

    v_parameterization: bool = False
    zero_terminal_snr: bool = False
    loss_type: str = "l2"
    huber_schedule: str = "snr"
    huber_c: float = 0.1
    huber_scale: float = 1.0
    min_snr_gamma: float | None = None
    scale_v_pred_loss_like_noise_pred: bool = False
    v_pred_like_loss: float = 0.0
    debiased_estimation_loss: bool = False

    def of_samples(
        self, estimate_BCHW: Tensor, target_BCHW: Tensor, t_B: Tensor, weight_B: Tensor, mask_B1HW: Tensor | None = None
    ) -> Tensor:
        """The loss of each sample, (B,). All are on one device, and float32 but for `t_B` and the estimate.

        The mask multiplies the error, and the mean is over all of it: what is masked counts as without error.
        """
        if gate.opens(estimate_BCHW, "loss"):
            return self._by_kernels(estimate_BCHW, target_BCHW, t_B, weight_B, mask_B1HW)
        error_BCHW = self._error(estimate_BCHW.float(), target_BCHW, t_B)
        if mask_B1HW is not None:
            error_BCHW = error_BCHW * mask_B1HW
        loss_B = error_BCHW.mean((1, 2, 3)) * weight_B
        for factor_T in _factors(self, t_B.device):
            loss_B = loss_B * factor_T[t_B]
        return loss_B

    def _by_kernels(
        self, estimate_BCHW: Tensor, target_BCHW: Tensor, t_B: Tensor, weight_B: Tensor, mask_B1HW: Tensor | None
    ) -> Tensor:
        for factor_T in _factors(self, t_B.device):
            weight_B = weight_B * factor_T[t_B]
        threshold_B = None if self.loss_type in ("l2", "l1") else self.threshold(t_B)
        loss_B: Tensor = kernels.loss(estimate_BCHW, target_BCHW, weight_B, mask_B1HW, threshold_B, self.loss_type)
        return loss_B

    def _error(self, estimate_BCHW: Tensor, target_BCHW: Tensor, t_B: Tensor) -> Tensor:
        if self.loss_type == "l2":
            return F.mse_loss(estimate_BCHW, target_BCHW, reduction="none")
        if self.loss_type == "l1":
            return F.l1_loss(estimate_BCHW, target_BCHW, reduction="none")
        threshold_B111 = self.threshold(t_B)[:, None, None, None]
        root_BCHW = ((estimate_BCHW - target_BCHW).square() + threshold_B111.square()).sqrt() - threshold_B111
        return 2 * (threshold_B111 * root_BCHW if self.loss_type == "huber" else root_BCHW)

    def threshold(self, t_B: Tensor) -> Tensor:
        """Where the (pseudo-)Huber loss turns from a square into a line, (B,).

        From 1 without noise down to `huber_c` at the last timestep, along σ or exponentially (arXiv:2403.16728), or
        the same for all. As in kohya's scripts `huber_scale` is not for "snr".
        """
        if self.huber_schedule == "constant":
            return torch.full(t_B.shape, self.huber_c * self.huber_scale, device=t_B.device)
        if self.huber_schedule == "exponential":
            return torch.exp(math.log(self.huber_c) / STEPS * t_B) * self.huber_scale
        alpha_B = _alphas(self.zero_terminal_snr, t_B.device)[t_B]
        sigma_B = ((1.0 - alpha_B) / alpha_B).sqrt()
        return (1 - self.huber_c) / (1 + sigma_B) ** 2 + self.huber_c


@cache
def _alphas(zero_terminal_snr: bool, device: torch.device) -> Tensor:
    """ᾱ_t (T,) on a device: copied there once, as a step must not wait for a copy."""
    return alphas_cumprod(zero_terminal_snr).to(device)


@cache
def _factors(loss: Loss, device: torch.device) -> list[Tensor]:
    """Factors on the loss by timestep, each (T,), in kohya's order."""
    snr_T = snr(torch.arange(STEPS), loss.zero_terminal_snr)
    bounded_T = snr_T.clamp(max=MOST_SNR)
    share_T = bounded_T / (bounded_T + 1)
    factors = []
    if loss.min_snr_gamma is not None:
        # Hang et al. 2023 (arXiv:2303.09556) in units of the noise's error, or of v's.
        reference_T = snr_T + 1 if loss.v_parameterization else snr_T
        factors.append(snr_T.clamp(max=loss.min_snr_gamma) / reference_T)
    if loss.scale_v_pred_loss_like_noise_pred:
        factors.append(share_T)
    if loss.v_pred_like_loss:
        factors.append(1 + loss.v_pred_like_loss / share_T)
    if loss.debiased_estimation_loss:  # arXiv:2310.08442
        factors.append(1 / (bounded_T + 1) if loss.v_parameterization else bounded_T.rsqrt())
    return [factor_T.to(device) for factor_T in factors]
