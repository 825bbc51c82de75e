"""Trains the embedded base `builtin:mini` from nothing on the paper-doll world.

    python -m lorac.mini.train vae  --work DIR
    python -m lorac.mini.train unet --work DIR
    python -m lorac.mini.train pack --work DIR --out mini.safetensors

Kill any of them and run the same command again: it continues from its last snapshot.
Legend: N drawings, B batch, C channels, H height, W width, L tokens, D text channels.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorac.mini import data
from lorac.mini.loop import Plan, Trainee, train
from lorac.rng import Stream, seed64
from lorac.sd import noise
from lorac.sd.checkpoint import BaseConfig, TextHeads, UNetHeads, VAEGroups, save_ldm
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.layers import Linear
from lorac.sd.sampler import sample
from lorac.sd.unet import Transformer, UNet, UNetConfig
from lorac.sd.blocks import Resnet
from lorac.sd.vae import SCALE, VAE, VAEConfig

SEED = 1
UNET = UNetConfig(width=32, context=64, heads=4, groups=8)
VAE_SIZES = VAEConfig(width=16, groups=8)
TEXT = TextConfig(width=64, layers=12, heads=4, inner=256)
CONFIG = BaseConfig(UNetHeads(4, 8), VAEGroups(8), TextHeads(4), resolution=data.SIZE, clip_skip=2)

CROP = 64


def train_vae(args: argparse.Namespace) -> None:
    """Stage 1: the autoencoder. Three quarters of the steps see crops of 64 pixels (four times the steps for the
    time), the rest whole drawings, so that the attention in the middle meets its real number of pixels."""
    drawn = data.pictures(args.work, args.pictures, args.threads)
    torch.manual_seed(SEED)
    vae = VAE(VAE_SIZES).to(args.device)
    plan = Plan(steps=args.steps, lr=1.2e-3, warmup=100, show_every=400, save_every=200)

    def loss_at(step: int) -> Tensor:
        stream = Stream(SEED, "vae batch", step)
        crop = step < 0.75 * plan.steps
        rows = [drawn[stream.below(len(drawn))] for _ in range(args.batch if crop else args.batch // 2)]
        if crop:
            corners = [(stream.below(CROP + 1), stream.below(CROP + 1)) for _ in rows]
            rows = [row[:, y : y + CROP, x : x + CROP] for row, (y, x) in zip(rows, corners, strict=True)]
        x_BCHW = data.to_float(np.stack(rows)).to(args.device)
        mean, logvar = vae.encode(x_BCHW)
        z_BCHW = mean + (0.5 * logvar).exp() * _normal(mean.shape, "vae noise", step).to(args.device)
        y_BCHW = vae.decode(z_BCHW)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return F.l1_loss(y_BCHW, x_BCHW) + 0.5 * _edges(y_BCHW, x_BCHW) + 1e-4 * kl

    def show(step: int) -> None:
        x_BCHW = data.to_float(drawn[-12:]).to(args.device)
        with torch.no_grad():
            y_BCHW = vae.decode(vae.encode(x_BCHW)[0])
        print(f"reconstruction L1 {float(F.l1_loss(y_BCHW, x_BCHW)):.4f}", flush=True)
        _grid(torch.cat([x_BCHW, y_BCHW]), 12, args.work / f"vae-{step:06}.png")

    trainee = Trainee(vae, plan)
    train(trainee, loss_at, show, args.work / "vae.state.safetensors")
    trainee.use_average()
    _standardise(vae, data.to_float(drawn[:512]).to(args.device))
    save_file(vae.state_dict(), args.work / "vae.safetensors")


def _edges(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """L1 distance of the horizontal and vertical differences: what makes outlines crisp."""
    difference = y_BCHW - x_BCHW
    return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


@torch.no_grad()
def _standardise(vae: VAE, x_BCHW: Tensor) -> None:
    """Shifts and scales the latent space, without changing what is decoded, so that each channel of the mean times
    `SCALE` has mean 0 and standard deviation 1."""
    mean = torch.cat([vae.encode(x)[0] for x in x_BCHW.split(64)]).transpose(0, 1).flatten(1)
    shift, scale = mean.mean(dim=1), 1 / (mean.std(dim=1) * SCALE)
    latent = len(scale)
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    vae.post_quant_conv.weight /= scale[None, :, None, None]
    vae.quant_conv.bias[:latent] = (vae.quant_conv.bias[:latent] - shift) * scale
    vae.quant_conv.weight[:latent] *= scale[:, None, None, None]
    vae.quant_conv.bias[latent:] += 2 * scale.log()


def _normal(shape: torch.Size, purpose: str, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed64(SEED, purpose, step))
    return torch.randn(shape, generator=generator)


def _grid(x_BCHW: Tensor, columns: int, path: Path) -> None:
    bytes_BHWC = ((x_BCHW.cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(bytes_BHWC[i : i + columns]), axis=1) for i in range(0, len(bytes_BHWC), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lorac.mini.train", description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=["vae"])
    parser.add_argument("--work", type=Path, required=True, help="folder for data, snapshots and sample pictures")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=24000, help="how many drawings to learn from")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    train_vae(args)


if __name__ == "__main__":
    main()
