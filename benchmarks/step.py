"""Training steps per second of a LoRA at the embedded base's sizes: lorac beside diffusers + PEFT.

    pip install 'lorac[bench]'
    python -m benchmarks.step [--threads 2] [--rounds 15] [--steps 4]

Both train the same 264 modules (U-Net and text encoder, rank 128) of the same random weights, in one process, in turns
of a few steps: batch 1, 128 px, captions of two chunks, clip skip 2, float32, AdamW, clipping at norm 1. Each is used
as it is meant to be: diffusers and PEFT eager on all threads, lorac with its fused step, which keeps to two. A matrix
product of 1024 × 1024 is timed in every round: times of different machines, or hours, compare only beside its rate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Series, commit, machine, table, versions, write_result
from lorac.mini.train import TEXT, UNET
from lorac.sd.clip import TextEncoder
from lorac.sd.lora import LoRANetwork, NetworkSettings
from lorac.sd.tokenizer import chunk
from lorac.sd.unet import UNet
from lorac.train.helper import threads
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Member, Trainer
from tests.small import base, diffusers_unet, transformers_text_model

RANK, CLIP_SKIP, TOKENS, RATE = 128, 2, 150, 1e-4
CAPTION = list(range(300, 340))
UNET_TARGETS = r".*(proj_in|proj_out|to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"
TEXT_TARGETS = r".*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
GEMM = 1024


def lorac_step(unet: UNet, text_encoder: TextEncoder) -> Callable[[int], object]:
    """A function that does one step of lorac's trainer."""
    lora = LoRANetwork(unet, text_encoder, NetworkSettings(RANK, float(RANK)))
    trainer = Trainer(unet, text_encoder, [Member(lora)], clip_skip=CLIP_SKIP, max_token_length=TOKENS)
    latents = [torch.randn(4, 16, 16)]

    def step(index: int) -> object:
        with threads(1):
            sample = Sample(0, 37 * index % 1000, index, 1.0, CAPTION)
            return trainer.step([(Step(index, RATE, RATE, [[sample]]), Pictures(latents))])

    return step


class PeftStep:
    """The training loop of diffusers' `train_text_to_image_lora.py`, with the text encoder trained too."""

    def __init__(self, unet: UNet, text_encoder: TextEncoder) -> None:
        from diffusers import DDPMScheduler
        from peft import LoraConfig

        self.unet, self.text = diffusers_unet(unet), transformers_text_model(text_encoder)
        for model, targets in ((self.unet, UNET_TARGETS), (self.text, TEXT_TARGETS)):
            model.requires_grad_(False)
            model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
        models = (self.unet, self.text)
        self.factors = [p for model in models for p in model.parameters() if p.requires_grad]
        adapted = sum(p.dim() > 1 for p in self.factors) // 2
        assert adapted == 264, adapted
        self.adamw = torch.optim.AdamW(self.factors, lr=RATE)
        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.latents = torch.randn(1, 4, 16, 16) * 0.18215
        self.ids = torch.tensor(chunk(CAPTION, TOKENS))

    def __call__(self, index: int) -> float:
        noise = torch.randn_like(self.latents)
        timestep = torch.tensor([37 * index % 1000])
        noisy: Tensor = self.scheduler.add_noise(self.latents, noise, timestep)
        loss = F.mse_loss(self.unet(noisy, timestep, self._states()).sample, noise)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.factors, 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        return loss.item()

    def _states(self) -> Tensor:
        hidden = self.text(self.ids, output_hidden_states=True).hidden_states[-CLIP_SKIP]
        states: Tensor = getattr(self.text, "text_model", self.text).final_layer_norm(hidden)
        return torch.cat([states[:1, :1], states[:, 1:-1].flatten(0, 1)[None], states[-1:, -1:]], dim=1)


def gemm(_: int) -> object:
    """A matrix product, for the machine's rate."""
    a = torch.ones(GEMM, GEMM)
    return a @ a


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps of each in a round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contestants: dict[str, Callable[[int], Any]] = {
        "lorac": lorac_step(*base(0, UNET, TEXT)),
        "diffusers + PEFT": PeftStep(*base(0, UNET, TEXT)),
        "matrix product": gemm,
    }
    series = {name: Series(name) for name in contestants}
    for done in range(options.rounds + 1):
        for name, step in contestants.items():
            started = time.perf_counter()
            for i in range(options.steps):
                step(done * options.steps + i)
            if done:  # the first round is for warming up
                series[name].seconds.append((time.perf_counter() - started) / options.steps)
    show(series, options.threads)


def show(series: dict[str, Series], threads: int) -> None:
    """Print a table and write the JSON."""
    ours, peer = series["lorac"].median, series["diffusers + PEFT"].median
    rate = 2 * GEMM**3 / series["matrix product"].median / 1e9
    rows = [[s.name, f"{s.median * 1e3:.0f}", f"{min(s.seconds) * 1e3:.0f}"] for s in series.values()]
    print(table(["builtin:mini, batch 1", "median ms", "best ms"], rows))
    print(f"lorac makes {peer / ours:.2f} times the steps of diffusers + PEFT; {threads} threads, {rate:.0f} GFLOP/s")
    facts = {
        "benchmark": "step",
        "commit": commit(),
        "machine": machine(),
        "threads": threads,
        "versions": versions(["torch", "diffusers", "peft", "transformers"]),
        "gemm_gflops": round(rate),
        "ratio": round(peer / ours, 2),
        "seconds": {name: s.facts() for name, s in series.items()},
    }
    print(write_result("step", facts))


if __name__ == "__main__":
    main()
