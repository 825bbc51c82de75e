"""How much of a prompt the embedded base draws, measured by the mini tagger on captions that nothing was trained on.

    python -m lorac.mini.adherence --count 400 --cores 2

Of each fresh figure of the random world it makes three pictures: a sample with the figure's caption as the prompt, the
drawing itself, and the drawing as the base's VAE gives it back. Recall is the share of the captions' tags that the
tagger sees; the two drawings say how much of what is missing is the tagger's or the VAE's fault. Precision is the share
of what it sees that the caption has. A sample takes about a core-second; pictures do not depend on `--cores`.

    python -m lorac.mini.adherence --sheet FILE PROMPT...       instead: four samples of each prompt, in one row

Shape suffixes: B pictures, C channels, H height, W width, L tokens, D text channels.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lorac.mini import attributes as words
from lorac.mini import data, world
from lorac.mini.figure import POSES
from lorac.mini.tagger_data import UNSEEN
from lorac.rng import seed64
from lorac.sd import checkpoint, parts
from lorac.sd.sampler import sample
from lorac.sd.vae import FACTOR, SCALE
from lorac.tagger.model import Tagger
from lorac.tagger.vocabulary import Thresholds, chosen, from_bytes, read_tags

FRESH_WORLD = 2026
"""The seed of figures that neither base nor tagger was trained on or chosen by."""
STEPS, GUIDANCE, THRESHOLD = 20, 4.0, 0.35
SHEET_COLUMNS = 4
FOLDER = Path(__file__).parent
BASE = FOLDER / "mini.safetensors"

ROWS = ("sample", "drawing", "behind the VAE")
_SCENERY = {"simple background", "school", "indoors", "outdoors", "horizon", "torii", "palm tree", "beach"}
GROUPS: tuple[tuple[str, frozenset[str]], ...] = (
    ("hair", frozenset(words.HAIR_STYLES) | {f"{colour} hair" for colour in words.HAIR_COLOURS}),
    ("eyes", frozenset(f"{colour} eyes" for colour in words.EYE_COLOURS)),
    ("gaze", frozenset({"looking at viewer", "looking to the side"})),
    ("expression", frozenset({"smile", "open mouth", "closed eyes", "blush"})),
    ("skin, glasses, bow", frozenset({"dark skin", "glasses", "red bow"})),
    ("colour of the outfit", frozenset(colour for colours in words.OUTFITS.values() for colour in colours) - {""}),
    ("pose", frozenset(POSES) | {"arms up", "outstretched arms"}),
    ("framing", frozenset(framing for framing, _ in words.FRAMINGS)),
    ("people", frozenset({"1girl", "solo", "multiple views", "mannequin", "faceless"})),
    ("place", frozenset(place for place, _ in words.BACKGROUNDS) | _SCENERY),
)
"""What a tag is about; one that is in no group names a piece of the outfit."""


def group_of(tag: str) -> str:
    """The row of the table that counts a tag."""
    return next((name for name, tags in GROUPS if tag in tags), "outfit")


class Base:
    """The embedded base and its tagger."""

    def __init__(self, steps: int = STEPS) -> None:
        self._steps = steps
        state, config = parts.open_base(BASE, str(BASE))
        self._unet = checkpoint.load_unet(state.unet, config.unet.heads, config.unet.groups)
        self._vae = checkpoint.load_vae(state.vae, config.vae.groups)
        self._text = checkpoint.load_text(state.text, config.text.heads)
        self._clip_skip = config.clip_skip
        table, model = FOLDER / "tagger" / "selected_tags.csv", FOLDER / "tagger" / "model.onnx"
        self._tags = read_tags(table.read_bytes(), str(table))
        self._tagger = Tagger(model, model.read_bytes(), len(self._tags))

    @torch.no_grad()
    def samples(self, prompts: Sequence[str], numbers: Sequence[int]) -> list[Image.Image]:
        """One picture for each prompt, from the noise of its number."""
        states_BLD = self._text(data.prompt_rows(["", *prompts]), self._clip_skip)
        noise_BCHW = torch.stack([_noise(number) for number in numbers])
        z_BCHW = sample(self._unet, states_BLD[1:], states_BLD[:1], noise_BCHW, self._steps, GUIDANCE, "ddim")
        return _images(self._vae.decode(z_BCHW / SCALE))

    @torch.no_grad()
    def behind_the_vae(self, drawings: Sequence[Image.Image]) -> list[Image.Image]:
        bytes_BCHW = np.stack([np.asarray(drawing).transpose(2, 0, 1) for drawing in drawings])
        return _images(self._vae.decode(self._vae.encode(data.to_float(bytes_BCHW))[0]))

    def seen(self, image: Image.Image) -> frozenset[str]:
        """What the tagger sees, without the name of a character."""
        probabilities = from_bytes(self._tagger.probabilities(image))
        return frozenset(chosen(self._tags, probabilities, Thresholds(THRESHOLD, character=2.0)))


def _noise(number: int) -> Tensor:
    side = data.SIZE // FACTOR
    generator = torch.Generator().manual_seed(seed64(FRESH_WORLD, "adherence", number) >> 1)
    return torch.randn((4, side, side), generator=generator)


def _images(x_BCHW: Tensor) -> list[Image.Image]:
    bytes_BHWC = ((x_BCHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(bytes_HWC) for bytes_HWC in bytes_BHWC]


@dataclass(frozen=True)
class Figure:
    """The caption of a figure, and what the tagger sees in its pictures, in the order of `ROWS`."""

    wanted: frozenset[str]
    seen: tuple[frozenset[str], ...]


def figures(base: Base, numbers: range) -> list[Figure]:
    """Fresh figures of the random world by number."""
    dolls = [world.sample(FRESH_WORLD, number) for number in numbers]
    captions = [world.tags(doll) for doll in dolls]
    drawings = [world.draw(doll, number).convert("RGB") for doll, number in zip(dolls, numbers, strict=True)]
    pictures = (base.samples([", ".join(tags) for tags in captions], numbers), drawings, base.behind_the_vae(drawings))
    return [
        Figure(frozenset(wanted) - UNSEEN, tuple(base.seen(image) for image in images))
        for wanted, *images in zip(captions, *pictures, strict=True)
    ]


@dataclass(frozen=True)
class Recalled:
    """How often tags were asked for, and the share of it that was seen in each of `ROWS`."""

    asked: int
    seen: tuple[float, ...]


def recalled(found: Sequence[Figure], tags: Iterable[str]) -> Recalled:
    """Of all these tags together."""
    counted = frozenset(tags)
    asked = sum(len(figure.wanted & counted) for figure in found)
    hits = [sum(len(figure.wanted & counted & figure.seen[row]) for figure in found) for row in range(len(ROWS))]
    return Recalled(asked, tuple(hit / max(1, asked) for hit in hits))


def precision(found: Sequence[Figure], row: int) -> float:
    """The share of what is seen in one of `ROWS` that the captions have."""
    right = sum(len(figure.wanted & figure.seen[row]) for figure in found)
    return right / max(1, sum(len(figure.seen[row]) for figure in found))


def table(found: Sequence[Figure], least: int = 5, worst: int = 20) -> str:
    """Recall by group and the worst tags that were asked for at least `least` times, in Markdown."""
    asked = Counter(tag for figure in found for tag in figure.wanted)
    groups = [*(name for name, _ in GROUPS), "outfit"]
    rows = [("all tags", recalled(found, asked))]
    rows += [(group, recalled(found, [tag for tag in asked if group_of(tag) == group])) for group in groups]
    lines = [f"| recall of | times asked | {' | '.join(ROWS)} |", "|---|" + "---|" * (1 + len(ROWS))]
    lines += [f"| {name} | {result.asked} | {_percents(result.seen)} |" for name, result in rows]
    lines.append(f"| precision | | {_percents([precision(found, row) for row in range(len(ROWS))])} |")
    each = sorted((recalled(found, [tag]).seen, tag) for tag, count in asked.items() if count >= least)
    lines += ["", f"Worst of the tags asked for at least {least} times (sample, drawing, behind the VAE; times asked):"]
    lines += [f"- {tag}: {_percents(seen).replace(' |', ',')} ({asked[tag]})" for seen, tag in each[:worst]]
    return "\n".join(lines)


def _percents(shares: Iterable[float]) -> str:
    return " | ".join(f"{share:.1%}" for share in shares)


def sheet(base: Base, prompts: Sequence[str]) -> Image.Image:
    """A row of samples for each prompt, the same noises in every row."""
    side, numbers = data.SIZE, range(SHEET_COLUMNS)
    page = Image.new("RGB", (side * SHEET_COLUMNS, side * len(prompts)))
    for row, prompt in enumerate(prompts):
        for column, image in enumerate(base.samples([prompt] * SHEET_COLUMNS, numbers)):
            page.paste(image, (column * side, row * side))
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lorac.mini.adherence", description=__doc__.partition("\n")[0])
    parser.add_argument("prompts", nargs="*", help="with --sheet")
    parser.add_argument("--count", type=int, default=200, help="figures")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="draw prompts into this file instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = Base()
    if args.sheet:
        sheet(base, args.prompts).save(args.sheet, optimize=True)
        return
    blocks = [range(start, min(start + 8, args.count)) for start in range(0, args.count, 8)]
    with ThreadPoolExecutor(args.cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = [figure for block in pool.map(lambda block: figures(base, block), blocks) for figure in block]
    print(f"{len(found)} figures, DDIM, {STEPS} steps, guidance {GUIDANCE:g}, threshold {THRESHOLD}\n")
    print(table(found))


if __name__ == "__main__":
    main()
