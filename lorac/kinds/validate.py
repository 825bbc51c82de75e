"""The mean loss over held-out pictures with a saved LoRA, always at the same timesteps and noise.

Training has not seen these pictures, so their loss rises when the LoRA learns its own pictures by heart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

if TYPE_CHECKING:
    from pathlib import Path

    from lorac.sd.lora import LoRANetwork
    from lorac.train.slices import Slice

NAME = "validate"
VERSION = 3
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("losses",)


def run(work: Work) -> Iterable[Made | Failed]:
    """`losses` is JSON: `lora` is the loss with it, `base` the loss without."""
    judge = Judge(work)
    if count := _also_trained(work, judge.steps):
        work.warn(f"{count} of the held-out pictures are also trained, so that their loss hides over-fitting")
    base: float | None = None
    for done, item in enumerate(work.items):
        judge.load(work.open(item.inputs["lora"]))
        base = judge.loss(0.0) if base is None else base
        losses = {"base": base, "lora": judge.loss(1.0)}
        yield Made(item.index, {"losses": json.dumps(losses, sort_keys=True).encode()})
        work.progress(done + 1, len(work.items), "LoRAs")


def _also_trained(work: Work, steps: Slice) -> int:
    """How many held-out pictures have the latents of a picture that is not held out."""
    from lorac.kinds.train import latent_ports

    latents = [digest for port in latent_ports(work) for digest in work.columns[port]]
    held_out = set(steps.item)
    trained = {latent for index, latent in enumerate(latents) if index not in held_out}
    return sum(latents[index] in trained for index in held_out)


class Judge:
    """The base and the held-out pictures; latents are the VAE's means."""

    def __init__(self, work: Work) -> None:
        from lorac.kinds import weights
        from lorac.kinds.train import pictures
        from lorac.sd.device import pick
        from lorac.train.objective import Objective
        from lorac.train.slices import decode

        self.device = pick()
        device, dtype = self.device.name, self.device.dtype
        self.unet = weights.unet(work.open(work.shared["unet"]), dtype).to(device)
        self.text = weights.text_encoder(work.open(work.shared["text"]), dtype).to(device)
        self.clip_skip: int = work.params["clip_skip"]
        self.objective = Objective.of(work.params["loss"], work.params["prediction"])
        self.steps = decode(work.read(work.shared["validation"]))
        self.pictures = pictures(work)
        self.lora: LoRANetwork | None = None

    def load(self, blob: Path | bytes) -> None:
        """Take another LoRA of the same run."""
        from lorac.sd.lora import LoRANetwork
        from lorac.sd.safetensors import tensors_of

        tensors = tensors_of(blob)
        if self.lora is None:
            self.lora = LoRANetwork.of_state(self.unet, self.text, tensors)
        else:
            self.lora.load_state(tensors)

    def loss(self, strength: float) -> float:
        """The mean over all held-out samples, with the LoRA at `strength`."""
        import torch

        assert self.lora is not None
        losses = []
        with torch.no_grad():
            self.lora.set_strength(strength)
            for samples in (samples for step in self.steps.steps() for samples in step.batches):
                batch = self.objective.batch(samples, self.pictures, self.steps.max_token_length)
                context_BLD = self.text(batch.ids.to(self.device.name), self.clip_skip)
                noisy_BCHW = batch.noisy.to(self.device.name, self.device.dtype)
                estimate_BCHW = self.unet(noisy_BCHW, batch.timestep.to(self.device.name), context_BLD)
                losses.append(self.objective.of_samples(estimate_BCHW, batch))
            return float(torch.cat(losses).mean())
