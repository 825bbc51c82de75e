"""Writes pictures of the world with their captions: `python -m lorac.mini.draw {riho,article,world} OUT`.

riho OUT                                        the 13 heads of recipes/images/riho_head
article OUT                                     the other picture sets below recipes/images, see `lorac.mini.sets`
world OUT --count 60 --seed 7 --ordinary        the 60 figures of recipes/images/reg_1girl
"""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from PIL import Image

from lorac.mini import sets
from lorac.mini.riho import HEADS, head_tags
from lorac.mini.world import Attributes, draw, sample, tags

HEAD_SIZE = 256
"""Side of the heads in pixels, twice the base's resolution, so that the recipes have something to resize."""


def write_pair(image: Image.Image, caption: list[str], path: Path) -> None:
    """Writes `path` (a PNG) and the .txt beside it: the tags, separated by comma and space, and a newline."""
    path.write_bytes(png(image))
    path.with_suffix(".txt").write_text(", ".join(caption) + "\n", encoding="utf-8", newline="\n")


def png(image: Image.Image) -> bytes:
    """An RGB or RGBA picture as a PNG file whose rows are not filtered.

    Pillow filters every row, as suits photographs; without, flat drawings take a third fewer bytes.
    """
    channels = {"RGB": 3, "RGBA": 4}[image.mode]
    pixels, stride = image.tobytes(), image.width * channels
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9)
    chunks = ((b"IHDR", header), (b"IDAT", packer.compress(rows) + packer.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_riho(out: Path) -> None:
    """Writes Riho's heads as riho_01.png … riho_13.png, RGBA, with captions."""
    out.mkdir(parents=True, exist_ok=True)
    for number, (attributes, placement) in enumerate(HEADS, 1):
        image = draw(attributes, number, HEAD_SIZE, placement)
        write_pair(image, head_tags(attributes), out / f"riho_{number:02}.png")


def write_article(out: Path) -> None:
    """Writes the folders of `sets.sets()` below `out`, each picture as 01.png …: RGBA if it is cut out, else RGB."""
    for folder, pictures in sets.sets().items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures, 1):
            image = draw(picture.attributes, picture.seed, sets.SIZE, picture.placement)
            cut_out = picture.attributes.background == "transparent background"
            write_pair(image if cut_out else image.convert("RGB"), picture.caption, out / folder / f"{number:02}.png")


def write_world(out: Path, number: int, seed: int, *, ordinary_only: bool = False) -> None:
    """Writes the first `number` pictures of the world with this seed as 0000.png …, RGB, with captions."""
    out.mkdir(parents=True, exist_ok=True)
    dolls = _numbered(seed, ordinary_only=ordinary_only)
    for place, (index, attributes) in enumerate(islice(dolls, number)):
        write_pair(draw(attributes, index).convert("RGB"), tags(attributes), out / f"{place:04}.png")


def ordinary(attributes: Attributes) -> bool:
    """Whether a picture shows one whole girl, as a model's answer to the prompt `1girl` would."""
    return not attributes.mannequin and attributes.framing not in ("head only", "split view")


def _numbered(seed: int, *, ordinary_only: bool) -> Iterator[tuple[int, Attributes]]:
    for index in count():
        attributes = sample(seed, index)
        if ordinary(attributes) or not ordinary_only:
            yield index, attributes


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` are those of the process unless given."""
    parser = argparse.ArgumentParser(prog="python -m lorac.mini.draw", description="Draw paper dolls with captions.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("riho", help="the 13 cut-out heads of Izumi Riho").add_argument("out", type=Path)
    article = kinds.add_parser("article", help="the other picture sets of the article's recipes")
    article.add_argument("out", type=Path)
    world = kinds.add_parser("world", help="random figures")
    world.add_argument("out", type=Path)
    world.add_argument("--count", type=int, default=60)
    world.add_argument("--seed", type=int, default=7)
    world.add_argument("--ordinary", action="store_true", help="leave out heads, split views and mannequins")
    chosen = parser.parse_args(arguments)
    if chosen.kind == "riho":
        write_riho(chosen.out)
    elif chosen.kind == "article":
        write_article(chosen.out)
    else:
        write_world(chosen.out, chosen.count, chosen.seed, ordinary_only=chosen.ordinary)


if __name__ == "__main__":
    main()
