"""Trains the mini tagger from nothing on the paper-doll world and writes it in WD14's file format.

    python -m lorac.mini.tagger_train --work DIR --cores 2

Kill it and run the same command again: it continues from its last snapshot. Everything is seeded. On two cores of an
AMD EPYC (Zen 3, 2.45 GHz) drawing takes a minute, the VAE another, and a step 0.9 s when nothing else runs; the files
that ship took 39 minutes beside other work. Needs the package `onnx` (the extra `mini`).

Legend: N drawings, B batch, C channels (blue, green, red), H height, W width, T tags.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lorac.mini import tagger_data as data
from lorac.mini.loop import Plan, Trainee, train
from lorac.mini.tagger_net import TaggerNet, write_onnx
from lorac.mini.world import sample
from lorac.rng import Stream, seed64
from lorac.sd import checkpoint, parts

SEED = 1
FOLDER = Path(__file__).with_name("tagger")
BASE = Path(__file__).with_name("mini.safetensors")
FRESH_WORLD = 11
"""The seed of drawings that nothing was trained on."""
THRESHOLD = 0.35


@dataclass
class TaggerLoss:
    """Binary cross entropy of a batch of altered drawings, as a function of (step, part)."""

    net: TaggerNet
    drawn: npt.NDArray[np.uint8]
    tags: npt.NDArray[np.uint8]
    batch: int

    def __call__(self, step: int, part: int) -> Tensor:
        stream = Stream(SEED, "tagger batch", step, part)
        rows = [stream.below(len(self.drawn)) for _ in range(self.batch)]
        x_BCHW, y_BT = self.drawn[rows], torch.from_numpy(self.tags[rows]).float()
        return F.binary_cross_entropy_with_logits(self.net(altered(x_BCHW, stream)), y_BT)


def altered(x_BCHW: npt.NDArray[np.uint8], stream: Stream) -> Tensor:
    """A batch as pictures come in real life, in [0, 1]: moved and scaled in a white frame, mirrored, brighter or
    darker, blurred, noisy, saved as JPEG."""
    generator = torch.Generator().manual_seed(seed64(stream.word(), "tagger noise"))
    saved = [_jpeg(row, 40 + stream.below(56)) if stream.uniform() < 0.3 else row for row in x_BCHW]
    pixels = torch.from_numpy(np.stack(saved)).float().div_(255)
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    theta = torch.zeros(count, 2, 3)
    zoom = uniform(0.9, 1.2)
    theta[:, 0, 0] = zoom * torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = zoom * uniform(0.96, 1.04)
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-0.08, 0.08), uniform(-0.08, 0.08)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels - 1, grid, align_corners=False) + 1  # outside lies 0 + 1: WD14's white frame
    still = (uniform(0, 1) < 0.25)[:, None, None, None]
    pixels = torch.where(still, pixels, moved)
    column = torch.linspace(-1, 1, pixels.shape[3])
    bar = uniform(-1, 0.25)[:, None, None, None]  # one picture in five is a portrait between two white bars
    pixels = torch.where(column.abs() > 1 - bar, 1.0, pixels)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    strength = (uniform(-1, 1).clamp(min=0))[:, None, None, None]
    pixels = torch.lerp(pixels, blurred, strength)
    pixels = pixels * uniform(0.93, 1.04)[:, None, None, None] + uniform(-0.03, 0.03)[:, None, None, None]
    grain = uniform(-0.03, 0.03).clamp(min=0)[:, None, None, None]
    pixels = pixels + grain * torch.randn(pixels.shape, generator=generator)
    return pixels.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def _jpeg(bgr_CHW: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(bgr_CHW[::-1].transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)[::-1]


@torch.no_grad()
def decoded(folder: Path, drawn_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Drawings as the embedded base's VAE gives them back: what it will be asked about in samples."""
    path = folder / f"tagger-decoded-{len(drawn_NCHW)}.npy"
    if not path.exists():
        state, config = parts.open_vae(BASE, str(BASE))
        vae = checkpoint.load_vae(state, config.groups)
        blocks = []
        for start in range(0, len(drawn_NCHW), 8):
            rgb_BCHW = torch.from_numpy(np.ascontiguousarray(drawn_NCHW[start : start + 8, ::-1])).float() / 127.5 - 1
            pixels = ((vae.decode(vae.encode(rgb_BCHW)[0]).clamp(-1, 1) + 1) * 127.5).round().byte()
            blocks.append(pixels.numpy()[:, ::-1])
        np.save(path, np.concatenate(blocks))
    again: npt.NDArray[np.uint8] = np.load(path)
    return again


@torch.no_grad()
def settle(net: TaggerNet, loss_at: TaggerLoss, steps: int = 60) -> None:
    """Measures the batch norms' means and variances anew: those of training belong to weights that were not kept."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average
    net.train()
    for step in range(steps):
        loss_at(-1 - step, 0)
    net.eval()


def write_csv(counts: Sequence[int], path: Path) -> None:
    """Writes selected_tags.csv: ratings have category 9, characters 4, everything else 0; `count` as trained on."""
    columns = data.columns()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tag_id", "name", "category", "count"])
        for place, (name, count) in enumerate(zip(columns, counts, strict=True)):
            rating = place < len(data.RATINGS)
            category = 9 if rating else 4 if name == data.CHARACTER else 0
            writer.writerow([9999999 - place if rating else place, name.replace(" ", "_"), category, count])


@dataclass(frozen=True)
class Score:
    """How a tag, or all tags together, came out."""

    tag: str
    precision: float
    recall: float
    shown: int


def scores(probability_NT: npt.NDArray[np.float32], truth_NT: npt.NDArray[np.uint8]) -> list[Score]:
    """At `THRESHOLD`: first of all tags together ("all", ratings left out), then of each tag that occurs."""
    found, truth = probability_NT >= THRESHOLD, truth_NT.astype(bool)
    first = len(data.RATINGS)

    def score(tag: str, said: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> Score:
        right = int((said & true).sum())
        return Score(tag, right / max(1, int(said.sum())), right / max(1, int(true.sum())), int(true.sum()))

    each = [score(tag, found[:, i], truth[:, i]) for i, tag in enumerate(data.columns()) if truth[:, i].any()]
    return [score("all", found[:, first:], truth[:, first:]), *(s for s in each if s.tag not in data.RATINGS)]


@torch.no_grad()
def fresh_scores(net: TaggerNet, count: int, *, training: bool) -> list[Score]:
    """On `count` drawings of the random world, or of the training set's kind, that it has not seen."""
    first = 10**7
    pairs = [data.picture(first + i) if training else data.flattened(sample(FRESH_WORLD, i), i) for i in range(count)]
    x = np.stack([pixels for pixels, _ in pairs])
    probability = [
        torch.sigmoid(net(torch.from_numpy(part).float() / 255)) for part in np.split(x, max(1, count // 50))
    ]
    return scores(torch.cat(probability).numpy(), np.stack([found for _, found in pairs]))


def show(net: TaggerNet, count: int = 1000) -> None:
    """Prints how good it is."""
    net.eval()
    for training in (False, True):
        every, *each = fresh_scores(net, count, training=training)
        print(f"{'altered' if training else 'random'} world: precision {every.precision:.4f} recall {every.recall:.4f}")
        worst = sorted(each, key=lambda s: min(s.precision, s.recall))[:10]
        print(
            "  weakest: " + ", ".join(f"{s.tag} {s.precision:.2f}/{s.recall:.2f} ({s.shown})" for s in worst),
            flush=True,
        )
    net.train()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lorac.mini.tagger_train", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for drawings and snapshots")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=1250)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--pictures", type=int, default=24000, help="how many drawings to learn from")
    parser.add_argument("--decoded", type=int, default=3000, help="how many of them also go through the base's VAE")
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.cores)
    args.work.mkdir(parents=True, exist_ok=True)
    drawn, found = data.pictures(args.work, args.pictures, args.cores)
    again = decoded(args.work, drawn[: args.decoded])
    drawn, found = np.concatenate([drawn, again]), np.concatenate([found, found[: args.decoded]])

    torch.manual_seed(SEED)
    net = TaggerNet(len(data.columns()))
    plan = Plan(args.steps, args.lr, warmup=50, decay=0.02, averaging=0.995, save_every=100, show_every=400)
    loss_at = TaggerLoss(net, drawn, found, args.batch)
    trainee = Trainee(net, plan)
    train(trainee, loss_at, lambda _: show(net, 200), args.work / "tagger.state.safetensors", parts=1)
    trainee.use_average()
    settle(net, loss_at)
    show(net)
    args.out.mkdir(exist_ok=True)
    write_onnx(net, data.SIZE, args.out / "model.onnx")
    write_csv(found.sum(0, dtype=np.int64).tolist(), args.out / "selected_tags.csv")
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters, {len(data.columns())} tags")


if __name__ == "__main__":
    main()
