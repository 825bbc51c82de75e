"""A project without a finding, with folders that a case of a rule can point its sources at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorac.mini.riho import HEADS, draw_riho
from lorac.mini.world import draw
from lorac.rng import Stream
from tests.tiny import save_base

RECIPE = """
[[source]]
path = "pictures"
repeats = 2
trigger = ["izumi riho"]
alpha = "white"

[[regularisation]]
path = "class"

[caption]
exclude = ["1girl", "solo"]
shuffle_caption = true
keep_tokens = 1

[network]
dim = 4
alpha = 2

[train]
epochs = 20
save_every_n_epochs = 10

[sample]
prompts = ["1girl, izumi riho, smile"]
"""
WORN = ("school uniform, skirt", "kimono", "maid, apron", "dress", "hoodie, shorts", "swimsuit")
EYES = "1girl, solo, purple eyes, orange hair"


def make_check_project(folder: Path) -> None:
    """`pictures` wear something else each, `class` is ordinary; `heads` and `bodies` are cut out; `aside` stand left
    and right; `dolls` and `kimonos` are outfits on a mannequin; `clear` are transparent; `small` and `tall` by size."""
    save_base(folder / "base.safetensors")
    _save(folder / "pictures", [noise(n) for n in range(6)], [f"{EYES}, standing, {worn}" for worn in WORN])
    _save(
        folder / "class",
        [noise(n) for n in range(20, 28)],
        [f"1girl, solo, blue hair, {WORN[n % 6]}" for n in range(8)],
    )
    heads = [draw(attributes, n, 128, placement) for n, (attributes, placement) in enumerate(HEADS[:6])]
    _save(folder / "heads", heads, [f"{EYES}, looking at viewer, smile, blush, head {n}" for n in range(6)])
    clear = "transparent background"
    bodies = [draw_riho(1, framing=framing, background=clear) for framing in ("full body", "cowboy shot", "upper body")]
    bodies.append(draw_riho(1, framing="full body", background=clear, outfit="kimono", pose="jumping"))
    _save(folder / "bodies", bodies)
    _save(folder / "aside", [block(left) for left in (2, 8, 14, 86, 92, 98)])
    _save(folder / "middle", [block(left) for left in (40, 42, 44, 46, 48, 58)])
    _save(folder / "dolls", [noise(30), noise(31)], ["mannequin, faceless, plaid skirt, cardigan"] * 2)
    _save(folder / "kimonos", [noise(32), noise(33)], ["mannequin, faceless, kimono, wide sleeves"] * 2)
    _save(folder / "clear", [Image.new("RGBA", (128, 128), (0, 0, 0, 0))] * 4, [f"nothing {n}" for n in range(4)])
    _save(folder / "small", [noise(n, (48, 48)) for n in range(40, 44)])
    _save(folder / "tall", [noise(n, (128, 512)) for n in range(50, 54)])
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")


def noise(seed: int, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """Coloured squares: no plain background, and like no other seed's."""
    stream = Stream(seed, "check project")
    squares = bytes(stream.below(256) for _ in range(8 * 8 * 3))
    return Image.frombytes("RGB", (8, 8), squares).resize(size, Image.Resampling.NEAREST)


def block(left: int) -> Image.Image:
    """A tall figure before a plain background, standing on the lower border."""
    image = Image.new("RGB", (128, 128), "white")
    image.paste((left * 2, 60, 250 - left), (left, 30 + left % 40, left + 26, 128))
    return image


def _save(folder: Path, images: Sequence[Image.Image], captions: Sequence[str] | None = None) -> None:
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
        text = f"1girl, solo, thing {number}, standing" if captions is None else captions[number]
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
