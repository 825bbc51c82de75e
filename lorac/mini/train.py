"""Trains the embedded base `builtin:mini` from nothing on the paper-doll world.

    python -m lorac.mini.train vae  --work DIR --steps 2000 --batch 4 --lr 4e-3 --cores 3
    python -m lorac.mini.train unet --work DIR --steps 8000 --batch 12 --lr 3e-3 --cores 4

Kill either of them and run the same command again: it continues from its last snapshot, to the same bits.
On cores of an AMD EPYC (Zen 3, 2.45 GHz) a step takes 0.4 s (crops) to 0.7 s in the first stage and 0.9 s in the
second: 16 minutes and two hours, and four minutes to draw and encode. Set `OMP_NUM_THREADS=1`; with glibc also
`MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` to 4294967296, which saves a third.

Legend: N drawings, B batch, C channels, H height, W width, L tokens, D text channels.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorac.mini import data
from lorac.mini.loop import Plan, Trainee, train
from lorac.rng import Stream, seed64
from lorac.sd import noise
from lorac.sd.blocks import Resnet
from lorac.sd.checkpoint import save_ldm
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.config import BaseConfig, TextHeads, UNetHeads, VAEGroups
from lorac.sd.layers import Linear
from lorac.sd.sampler import sample
from lorac.sd.unet import Transformer, UNet, UNetConfig
from lorac.sd.vae import FACTOR, SCALE, VAE, VAEConfig

SEED = 1
UNET = UNetConfig(width=32, context=64, heads=2, groups=8)
VAE_SIZES = VAEConfig(width=16, groups=8)
TEXT = TextConfig(width=64, layers=12, heads=4, inner=256)
CONFIG = BaseConfig(UNetHeads(2, 8), VAEGroups(8), TextHeads(4), resolution=data.SIZE, clip_skip=2)

CROP = 64

PROMPTS = [
    "1girl, school uniform, standing",
    "1girl, long hair, brown hair, blue eyes, smile, school uniform, serafuku, standing, full body, white background",
    "1girl, twintails, pink hair, maid, maid apron, full body, white background",
    "1girl, short hair, black hair, kimono, red kimono, japanese garden, torii, outdoors",
    "1girl, ponytail, blonde hair, swimsuit, blue swimsuit, ocean, outdoors, cowboy shot",
    "1girl, bob cut, blue hair, red eyes, hoodie, yellow hoodie, upper body, classroom",
    "1girl, green hair, close-up, yellow eyes, smile, grey background",
    "1girl, white hair, military uniform, military hat, black background, standing",
    "1girl, red hair, dancer, dancing, arms up, tropical island, palm tree",
    "1girl, glasses, brown hair, open mouth, upper body, blue background",
    "1girl, dress, yellow dress, jumping, outstretched arms, pink background",
    "1girl, capelet, green capelet, sitting, closed eyes, dark skin",
]
"""What the preview grids show."""


def train_vae(args: argparse.Namespace) -> None:
    """Stage 1: the autoencoder. Three quarters of the steps see crops of 64 pixels (four times the steps for the
    time), the rest whole drawings, so that the attention in the middle meets its real number of pixels."""
    drawn = data.pictures(args.work, args.pictures, args.cores)
    torch.manual_seed(SEED)
    vae = VAE(VAE_SIZES).to(args.device)
    with torch.no_grad():  # Little noise at first: the decoder learns from what it can see.
        _bias(vae.quant_conv)[VAE_SIZES.latent :] = -6
    plan = Plan(steps=args.steps, lr=args.lr, warmup=100, show_every=300, save_every=200)
    loss_at = VAELoss(vae, args.work, args.pictures, args.batch, crops_until=0.75 * plan.steps)

    def show(step: int) -> None:
        x_BCHW = data.to_float(drawn[-12:]).to(args.device)
        with torch.no_grad():
            y_BCHW = vae.decode(vae.encode(x_BCHW)[0])
        print(f"reconstruction L1 {float(F.l1_loss(y_BCHW, x_BCHW)):.4f}", flush=True)
        _grid(torch.cat([x_BCHW, y_BCHW]), 12, args.work / f"vae-{step:06}.png")

    trainee = Trainee(vae, plan)
    train(trainee, loss_at, show, args.work / "vae.state.safetensors", args.cores)
    trainee.use_average()
    standardise(vae, data.to_float(drawn[:512]).to(args.device))
    save_file(vae.state_dict(), args.work / "vae.safetensors")


@dataclass
class VAELoss:
    """The loss of `batch` crops, or of half as many whole drawings, as a function of (step, part)."""

    vae: VAE
    folder: Path
    pictures: int
    batch: int
    crops_until: float

    def __call__(self, step: int, part: int) -> Tensor:
        """A scalar: L1 and squared error of pixels, L1 of their differences, and a little of the KL divergence."""
        drawn = data.pictures(self.folder, self.pictures, workers=1)
        stream = Stream(SEED, "vae batch", step, part)
        crop = step < self.crops_until
        rows = [drawn[stream.below(len(drawn))] for _ in range(self.batch if crop else self.batch // 2)]
        if crop:
            corners = [(stream.below(CROP + 1), stream.below(CROP + 1)) for _ in rows]
            rows = [row[:, y : y + CROP, x : x + CROP] for row, (y, x) in zip(rows, corners, strict=True)]
        x_BCHW = data.to_float(np.stack(rows)).to(_device(self.vae))
        mean, logvar = self.vae.encode(x_BCHW)
        z_BCHW = mean + (0.5 * logvar).exp() * _normal(mean.shape, "vae noise", step, part).to(mean.device)
        y_BCHW = self.vae.decode(z_BCHW)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        pixels = F.l1_loss(y_BCHW, x_BCHW) + F.mse_loss(y_BCHW, x_BCHW)
        return pixels + 0.5 * _edges(y_BCHW, x_BCHW) + 1e-4 * kl


def _edges(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """L1 distance of the horizontal and vertical differences: what makes outlines crisp."""
    difference = y_BCHW - x_BCHW
    return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


@torch.no_grad()
def standardise(vae: VAE, x_BCHW: Tensor) -> None:
    """Shifts and scales the latent space, without changing what is decoded, so that each channel of the mean times
    `SCALE` has mean 0 and standard deviation 1."""
    mean = torch.cat([vae.encode(x)[0] for x in torch.split(x_BCHW, 64)]).transpose(0, 1).flatten(1)
    shift, scale = mean.mean(dim=1), 1 / (mean.std(dim=1) * SCALE)
    latent = len(scale)
    decoding, encoding = vae.post_quant_conv, vae.quant_conv
    _bias(decoding).add_(decoding.weight[:, :, 0, 0] @ shift)
    decoding.weight.div_(scale[None, :, None, None])
    _bias(encoding)[:latent].sub_(shift).mul_(scale)
    encoding.weight[:latent].mul_(scale[:, None, None, None])
    _bias(encoding)[latent:].add_(2 * scale.log())


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def train_unet(args: argparse.Namespace) -> None:
    """Stage 2: the U-Net and the text encoder together, on the latents of stage 1, predicting the noise.

    Loss weights are min-SNR with γ = 5 (Hang et al. 2023). One caption in ten is empty, for guidance.
    """
    vae = _vae(args)
    z_NCHW = _latents(vae, args)
    torch.manual_seed(SEED)
    unet, text = UNet(UNET), TextEncoder(TEXT)
    initialise(unet, text)
    model = nn.ModuleDict({"unet": unet, "text": text}).to(args.device)
    plan = Plan(steps=args.steps, lr=args.lr, warmup=100, show_every=300, save_every=150)
    loss_at = UNetLoss(unet, text, z_NCHW, args.batch, parts=args.cores)

    def show(step: int) -> None:
        _grid(generate(unet, vae, text, PROMPTS), 6, args.work / f"unet-{step:06}.png")

    trainee = Trainee(model, plan)
    train(trainee, loss_at, show, args.work / "unet.state.safetensors", args.cores)
    trainee.use_average()
    save_ldm(args.out, unet, vae, text, CONFIG)
    for name, part in (("U-Net", unet), ("VAE", vae), ("text encoder", text)):
        print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters")
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


@dataclass
class UNetLoss:
    """The loss of `batch` latents with their captions, one of `parts` of a step, as a function of (step, part)."""

    unet: UNet
    text: TextEncoder
    latents: Tensor
    batch: int
    parts: int

    def __call__(self, step: int, part: int) -> Tensor:
        """A scalar: the weighted squared error of the predicted noise."""
        device = self.latents.device
        stream = Stream(SEED, "unet batch", step, part)
        indices = [stream.below(len(self.latents)) for _ in range(self.batch)]
        ids_BL = torch.tensor([data.token_row(i, stream) for i in indices], device=device)
        # One timestep from each of as many equal intervals as the step has latents: uniform, with less variance than
        # independent draws.
        first, count = part * self.batch, self.parts * self.batch
        times = [int((first + i + stream.uniform()) / count * noise.STEPS) for i in range(self.batch)]
        t_B = torch.tensor(times, device=device)
        x_BCHW = self.latents[indices]
        noise_BCHW = _normal(x_BCHW.shape, "unet noise", step, part).to(device)
        eps_BCHW = self.unet(noise.add_noise(x_BCHW, noise_BCHW, t_B), t_B, self.text(ids_BL, CONFIG.clip_skip))
        errors_B = F.mse_loss(eps_BCHW, noise_BCHW, reduction="none").mean(dim=(1, 2, 3))
        return (errors_B * _min_snr(t_B)).mean()


@torch.no_grad()
def initialise(unet: UNet, text: TextEncoder) -> None:
    """First weights: PyTorch's for linear layers; zero where a block joins its residual, as in the original.

    The text encoder's are CLIP's: deviations fall with the width and, before a residual, with the depth. Token
    embeddings start large enough that a tag is not drowned by the first layers' average. With clip skip 2 the text
    encoder's last layer is never run in training; it is made to pass its input on, so that clip skip 1 works too.
    """
    for module in unet.modules():
        if isinstance(module, Linear):
            nn.init.kaiming_uniform_(module.matrix, a=5**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Resnet):
            nn.init.zeros_(module.conv2.weight)
    for module in unet.modules():
        if isinstance(module, Transformer):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(unet.conv_out.weight)
    width, deep = text.config.width**-0.5, (2 * text.config.layers) ** -0.5
    deviations = {"q_proj": width * deep, "k_proj": width * deep, "v_proj": width * deep, "out_proj": width}
    deviations |= {"fc1": width * 2**-0.5, "fc2": width * deep}
    for name, module in text.named_modules():
        if isinstance(module, Linear):
            assert module.bias is not None
            nn.init.normal_(module.weight, std=deviations[name.rpartition(".")[2]])
            nn.init.zeros_(module.bias)
    nn.init.normal_(text.text_model.embeddings.token_embedding.weight, std=0.3)
    nn.init.normal_(text.text_model.embeddings.position_embedding.weight, std=0.05)
    last: Any = text.text_model.encoder.layers[-1].requires_grad_(False)
    for layer in (last.self_attn.out_proj, last.mlp.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def generate(unet: UNet, vae: VAE, text: TextEncoder, prompts: list[str], cfg: float = 5.0, steps: int = 20) -> Tensor:
    """One picture for each prompt, (B, 3, 128, 128) in about [-1, 1]."""
    device = _device(unet)
    states_BLD = text(data.prompt_rows(["", *prompts]).to(device), CONFIG.clip_skip)
    side = data.SIZE // FACTOR
    noise_BCHW = _normal(torch.Size((len(prompts), 4, side, side)), "preview").to(device)
    z_BCHW = sample(unet, states_BLD[1:], states_BLD[:1], noise_BCHW, steps, cfg)
    return vae.decode(z_BCHW / SCALE)


def _min_snr(t_B: Tensor, gamma: float = 5.0) -> Tensor:
    snr_B = noise.snr(t_B)
    return snr_B.clamp(max=gamma) / snr_B


def _vae(args: argparse.Namespace) -> VAE:
    vae = VAE(VAE_SIZES)
    vae.load_state_dict(load_file(args.work / "vae.safetensors"))
    return vae.to(args.device).requires_grad_(False)


@torch.no_grad()
def _latents(vae: VAE, args: argparse.Namespace) -> Tensor:
    """Scaled latent means of all drawings, (N, 4, 16, 16), computed once and kept in the work folder."""
    path = args.work / f"latents-{args.pictures}.safetensors"
    if not path.exists():
        drawn = data.pictures(args.work, args.pictures, args.cores)
        blocks = [drawn[i : i + 16] for i in range(0, len(drawn), 16)]

        def encode(block: npt.NDArray[np.uint8]) -> Tensor:
            with torch.no_grad():
                return vae.encode(data.to_float(block).to(args.device))[0] * SCALE

        with ThreadPoolExecutor(args.cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            save_file({"z": torch.cat(list(pool.map(encode, blocks)))}, path)
    return load_file(path)["z"].to(args.device)


def _normal(shape: torch.Size, purpose: str, *counters: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed64(SEED, purpose, *counters))
    return torch.randn(shape, generator=generator)


def _grid(x_BCHW: Tensor, columns: int, path: Path) -> None:
    bytes_BHWC = ((x_BCHW.cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(bytes_BHWC[i : i + columns]), axis=1) for i in range(0, len(bytes_BHWC), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lorac.mini.train", description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=["vae", "unet"])
    parser.add_argument("--work", type=Path, required=True, help="folder for data, snapshots and sample pictures")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("mini.safetensors"))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="drawings of one process in one step")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--pictures", type=int, default=24000, help="how many drawings to learn from")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="processes; 1 with --device cuda")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "unet": train_unet}[args.stage](args)


if __name__ == "__main__":
    main()
