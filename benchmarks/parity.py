"""How far lorac's models and its training step are from diffusers, transformers and PEFT at SD1.5's sizes, in float32.

    pip install 'lorac[bench]'
    python -m benchmarks.parity
    python -m benchmarks.parity --device cuda

Random weights, 256 px, batch 1. Each figure is a relative error in the 2-norm; of the gradients it is the largest of
all tensors whose norm is more than a millionth of the whole. The slow test `tests/test_parity.py` holds them to 1e-4.

With `--device cuda` lorac's step on the card, in float32 and in float16, is compared with its step on the CPU in
float32, both with weights that float16 has; the exit code is 1 where they are further apart than ON_CARD.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import commit, keep, machine, table, versions, write_result
from benchmarks.peer import Peer, states
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import Part
from lorac.sd.lora_settings import NetworkSettings
from lorac.sd.tokenizer import chunk
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Member, Trainer
from tests.fullsize import Base, diffusers_models, draw

LIMIT = 1e-4
ON_CARD = {torch.float32: 1e-3, torch.float16: 3e-2}
"""Of loss and gradients. Float16 has 11 digits, of which each layer forward and backward rounds the last."""
RANK, ALPHA, TOKENS = 4, 2.0, 75
CAPTION = list(range(320, 360))
SCALE = 0.18215
SCALED = 1024.0
SMALL = 1e-6
PREFIXES: Mapping[Part, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}

Named = dict[str, Tensor]
Theirs = tuple[Any, Any, Any]


def figures(base: Base | None = None) -> Iterator[tuple[str, float]]:
    """(what, relative error), one after the other; by default of models of SD1.5's sizes."""
    base = base or draw()
    theirs = diffusers_models(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        ids_BKL = torch.tensor([chunk(CAPTION, TOKENS)])
        for clip_skip in (1, 2):
            error = distance(base.text(ids_BKL, clip_skip), states(theirs[2], ids_BKL, clip_skip))
            yield f"text encoder, clip skip {clip_skip}", error
        x_BCHW = torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1
        mean, logvar = base.vae.encode(x_BCHW)
        expected = theirs[1].encode(x_BCHW).latent_dist
        yield "VAE encode, mean", distance(mean, expected.mean)
        yield "VAE encode, log-variance", distance(logvar, expected.logvar)
        z_BCHW = torch.randn(1, 4, 32, 32, generator=generator)
        yield "VAE decode", distance(base.vae.decode(z_BCHW), theirs[1].decode(z_BCHW).sample)
        ctx_BLD = torch.randn(1, 77, base.unet.config.context, generator=generator)
        t_B = torch.tensor([481])
        yield "U-Net", distance(base.unet(z_BCHW, t_B, ctx_BLD), theirs[0](z_BCHW, t_B, ctx_BLD).sample)
    yield from _training(base, theirs, z_BCHW[0], clip_skip=2)


def _training(base: Base, theirs: Theirs, latent_CHW: Tensor, clip_skip: int) -> Iterator[tuple[str, float]]:
    sample = Sample(0, 481, 7, 1.0, CAPTION)
    loss, gradients, factors = _our_step(base, Step(0, 0.0, 0.0, [[sample]]), latent_CHW, clip_skip)
    expected_loss, expected = _their_step(theirs, factors, sample, latent_CHW, clip_skip)
    yield "training step, loss", abs(loss - expected_loss) / expected_loss
    assert len(expected) == 2 * 264 == len(gradients), (len(expected), len(gradients))
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    counted = {name: gradient for name, gradient in expected.items() if gradient.norm() > SMALL * norm}
    largest = max(distance(gradients[name], gradient) for name, gradient in counted.items())
    yield "training step, gradients, largest", largest
    whole = torch.stack([(gradients[name] - gradient).norm() for name, gradient in expected.items()]).norm()
    yield "training step, gradients, all", float(whole / norm)


def _our_step(base: Base, step: Step, latent_CHW: Tensor, clip_skip: int) -> tuple[float, Named, Named]:
    """(loss, gradients, factors), the tensors under kohya's names. The learning rates are 0, so the factors stay."""
    lora = LoRANetwork(base.unet, base.text, NetworkSettings(RANK, ALPHA), seed=1, merged=False)
    generator = torch.Generator().manual_seed(2)
    factors = {
        name: tensor if tensor.dim() == 0 else torch.randn(tensor.shape, generator=generator) * 0.02
        for name, tensor in sorted(lora.state().items())
    }
    lora.load_state(factors)
    member = Member(lora)
    trainer = Trainer(base.unet, base.text, [member], clip_skip=clip_skip, max_token_length=TOKENS)
    member.loss_scale.value.clamp_(max=SCALED)  # one step: it may not overflow first
    held: Named = {}

    def keep(norm: Tensor, rates: object) -> None:
        parameters = (factor for part in trainer.trained for factor in lora.parameters(part))
        grads = {factor: torch.zeros_like(factor) if factor.grad is None else factor.grad for factor in parameters}
        scale = member.loss_scale.value.cpu()
        held.update({name: gradient.cpu() / scale for name, gradient in lora.named(grads).items()})

    member.optimiser.apply = keep  # type: ignore[method-assign]
    (loss,) = trainer.step([(step, Pictures([latent_CHW]))])
    assert loss is not None
    lora.detach()
    return float(loss), held, {name: tensor for name, tensor in factors.items() if tensor.dim()}


def _their_step(
    theirs: Theirs, factors: Mapping[str, Tensor], sample: Sample, latent_CHW: Tensor, clip_skip: int
) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients under kohya's names) of diffusers and PEFT with the same factors."""
    peer = Peer(theirs[0], theirs[2], RANK, ALPHA, clip_skip)
    parameters: dict[str, Any] = {}
    for part, prefix in PREFIXES.items():
        parameters |= _load_factors(peer.factors(part), prefix, factors)
    noise = torch.randn(latent_CHW.shape, generator=torch.Generator().manual_seed(sample.noise_seed))
    states_BLD = peer.states(torch.tensor([chunk(sample.ids, TOKENS)]))
    loss = peer.loss(latent_CHW[None] * SCALE, noise[None], torch.tensor([sample.timestep]), states_BLD)
    torch.autograd.backward(loss)
    return loss.item(), {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in parameters.items()}


def _load_factors(theirs: Mapping[str, Any], prefix: str, factors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give PEFT's layers the factors; returns its parameters under kohya's names."""
    found = {}
    for path, parameter in theirs.items():
        module, _, kind = path.removesuffix(".default.weight").rpartition(".lora_")
        module = module if prefix == "lora_unet" or module.startswith("text_model.") else f"text_model.{module}"
        name = f"{prefix}_{module.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[kind] }.weight"
        parameter.data.copy_(factors[name])
        found[name] = parameter
    return found


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The relative error in the 2-norm."""
    return float((ours - theirs).norm() / theirs.norm())


def on_device(device: str, base: Base | None = None) -> Iterator[tuple[str, torch.dtype, float]]:
    """(what, in which precision, relative error) of a step on `device` against one on the CPU in float32."""
    rounded = (base or draw()).to(torch.float16)
    step, latent_CHW = Step(0, 0.0, 0.0, [[Sample(0, 481, 7, 1.0, CAPTION)]]), torch.randn(4, 32, 32)
    expected_loss, expected, _ = _our_step(rounded.to(torch.float32), step, latent_CHW, clip_skip=2)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    torch.backends.cudnn.allow_tf32 = False
    for dtype in ON_CARD:
        moved = rounded.to(dtype)
        for model in (moved.unet, moved.text):
            model.to(device)
        loss, gradients, _ = _our_step(moved, step, latent_CHW, clip_skip=2)
        yield "loss", dtype, abs(loss - expected_loss) / expected_loss
        apart = torch.stack([(gradients[name] - gradient).norm() for name, gradient in expected.items()])
        yield "gradients", dtype, float(apart.norm() / norm)


def _card(device: str) -> None:
    found = list(on_device(device))
    rows = [[what, str(dtype), f"{error:.1e}"] for what, dtype, error in found]
    print(table(["SD1.5's sizes", "on the card", "relative error"], rows))
    errors = {f"{what}, {str(dtype).removeprefix('torch.')}": float(f"{error:.2e}") for what, dtype, error in found}
    keep("parity_cuda", "full-256-cuda", {"relative_errors": errors}, ["torch"])
    if any(not error <= ON_CARD[dtype] for _, dtype, error in found):
        sys.exit(1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        _card(options.device)
        return
    started = time.perf_counter()
    found = dict(figures())
    rows = [[name, f"{error:.1e}"] for name, error in found.items()]
    print(table(["SD1.5's sizes, float32", "relative error"], rows))
    facts = {
        "benchmark": "parity",
        "commit": commit(),
        "machine": machine(),
        "versions": versions(["torch", "diffusers", "peft", "transformers"]),
        "seconds": round(time.perf_counter() - started),
        "limit": LIMIT,
        "relative_errors": {name: float(f"{error:.2e}") for name, error in found.items()},
    }
    print(write_result("parity", facts))


if __name__ == "__main__":
    main()
