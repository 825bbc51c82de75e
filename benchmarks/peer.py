"""The peer: a LoRA on diffusers' U-Net and transformers' text encoder by PEFT, trained as diffusers' scripts do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import CAPTION, RATE, Models
from lorac.sd.lora_names import PARTS, Part
from lorac.sd.tokenizer import chunk

TARGETS: Mapping[Part, str] = {
    "unet": r".*(proj_in|proj_out|to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)",
    "text_encoder": r".*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
}
"""kohya's 192 and 72 modules, as PEFT wants them named."""


class Peer:
    """The two models with LoRAs, and the loss. Their weights may be the very tensors of lorac's modules."""

    def __init__(
        self, unet: Any, text: Any, rank: int, alpha: float, clip_skip: int, trained: Collection[Part] = PARTS
    ) -> None:
        from diffusers import DDPMScheduler
        from peft import LoraConfig

        self.models: dict[Part, Any] = {"text_encoder": text, "unet": unet}
        self.clip_skip, self.trained = clip_skip, trained
        for part, model in self.models.items():
            model.requires_grad_(False)
            if part in trained:
                model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS[part]))
        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def factors(self, part: Part) -> dict[str, Any]:
        """The LoRA's parameters of one part by PEFT's names."""
        return {name: p for name, p in self.models[part].named_parameters() if p.requires_grad}

    def states(self, ids_BKL: Tensor) -> Tensor:
        """The states of captions of K chunks, (B, 75K + 2, D)."""
        return states(self.models["text_encoder"], ids_BKL, self.clip_skip)

    def loss(self, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, states_BLD: Tensor) -> Tensor:
        """Of scaled latents."""
        noisy_BCHW = self.scheduler.add_noise(x_BCHW, noise_BCHW, t_B)
        estimate_BCHW = self.models["unet"](noisy_BCHW, t_B, states_BLD).sample
        return F.mse_loss(estimate_BCHW.float(), noise_BCHW.float())


def states(text: Any, ids_BKL: Tensor, clip_skip: int) -> Tensor:
    """kohya's definition (sd-scripts strategy_sd.py): `hidden_states[-clip_skip]`, then the final LayerNorm; of each
    chunk alone, without the begin and end states between chunks."""
    hidden = text(ids_BKL.flatten(0, 1), output_hidden_states=True).hidden_states[-clip_skip]
    states_BKLD = getattr(text, "text_model", text).final_layer_norm(hidden).view(*ids_BKL.shape, -1)
    inner_BLD = states_BKLD[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states_BKLD[:, 0, :1], inner_BLD, states_BKLD[:, -1, -1:]], dim=1)


class PeftStep:
    """The training loop of diffusers' `train_text_to_image_lora.py`, eager, AdamW as it is, clipping at norm 1.

    Latents are cached; so are the text states of a text encoder that is not trained, which the script would compute in
    every step: a few per cent in the peer's favour. On CUDA as with `--mixed_precision fp16`: weights in float16,
    factors in float32, autocast, loss scaling. `compiler`: the backend of torch.compile that makes the models' passes.
    """

    def __init__(self, models: Models, px: int, batch: int, compiler: str | None = None) -> None:
        size = models.size
        self.device = models.unet.conv_in.weight.device
        self.peer = Peer(*models.diffusers(), size.rank, size.rank, size.clip_skip, size.trained)
        self.factors = [factor for part in PARTS for factor in self.peer.factors(part).values()]
        assert sum(factor.dim() > 1 for factor in self.factors) == 2 * size.modules, len(self.factors)
        for factor in self.factors:
            factor.data = factor.data.float()
        self.adamw = torch.optim.AdamW(self.factors, lr=RATE)
        self.cuda = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.cuda)
        self.latents = torch.randn(batch, 4, px // 8, px // 8, device=self.device) * 0.18215
        self.ids = torch.tensor([chunk(CAPTION, size.tokens)] * batch, device=self.device)
        if compiler is not None:
            for part in size.trained:
                self.peer.models[part] = torch.compile(self.peer.models[part], backend=compiler)
        with torch.no_grad():
            self.cached = None if "text_encoder" in size.trained else self.peer.states(self.ids)

    def __call__(self, index: int) -> float:
        noise = torch.randn_like(self.latents)
        timestep = torch.full((len(self.latents),), 37 * index % 1000, device=self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.cuda):
            states = self.peer.states(self.ids) if self.cached is None else self.cached
            loss = self.peer.loss(self.latents, noise, timestep, states)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.adamw)
        torch.nn.utils.clip_grad_norm_(self.factors, 1.0)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad()
        return loss.item()

    def finish(self) -> None:
        """Nothing is left to do."""
