"""Riho, and the pictures that the recipes use: committed as they are drawn."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from lorac.mini import draw as cli
from lorac.mini.riho import HEADS, RIHO, draw_riho, head_tags
from lorac.mini.world import draw, sample, tags, vocabulary

IMAGES = Path(__file__).parent.parent / "recipes" / "images"


def pixels(image: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(image, dtype=np.int16)


def caption(path: Path) -> str:
    return path.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_random_world_never_draws_riho() -> None:
    hers = {"double bun", "orange hair", "yellow bow", "star hair ornament", "mole under eye"}
    assert hers <= set(tags(RIHO))
    assert not hers & set(vocabulary())
    assert not any(hers & set(tags(attributes)) for attributes in (sample(11, index) for index in range(3000)))


def test_riho_is_recognised_by_her_colours() -> None:
    picture = pixels(draw_riho(1, size=256, outfit="swimsuit", outfit_colour="blue swimsuit"))
    for colour, least in (((240, 126, 38), 1300), ((255, 216, 40), 400), ((60, 214, 222), 50), ((150, 60, 210), 75)):
        assert (picture[..., :3] == colour).all(axis=2).sum() > least, colour
    turned = np.abs(pixels(draw_riho(1, turn=4.5)) - pixels(draw_riho(1))).max(axis=2) > 60
    assert 50 < turned.sum() < 1500


@pytest.mark.parametrize("number", [1, 8])
def test_the_committed_heads_can_be_redrawn(number: int) -> None:
    path = IMAGES / "riho_head" / f"riho_{number:02}.png"
    attributes, placement = HEADS[number - 1]
    with Image.open(path) as image:
        assert np.abs(pixels(image) - pixels(draw(attributes, number, 256, placement))).mean() < 2
    assert caption(path) == ", ".join(head_tags(attributes)) + "\n"


def test_the_committed_regularisation_images_can_be_redrawn(tmp_path: Path) -> None:
    cli.main(["world", str(tmp_path), "--count", "2", "--seed", "7", "--ordinary"])
    for name in ("0000", "0001"):
        committed = IMAGES / "reg_1girl" / f"{name}.png"
        with Image.open(committed) as one, Image.open(tmp_path / f"{name}.png") as other:
            assert one.mode == other.mode == "RGB"
            assert np.abs(pixels(one) - pixels(other)).mean() < 2
        assert caption(committed) == caption(tmp_path / f"{name}.png")


def test_the_committed_images_are_complete_and_small() -> None:
    heads, figures = sorted((IMAGES / "riho_head").glob("*.png")), sorted((IMAGES / "reg_1girl").glob("*.png"))
    assert [path.stem for path in heads] == [f"riho_{number:02}" for number in range(1, 14)]
    assert len(figures) == 60
    assert max(path.stat().st_size for path in heads) <= 12 * 1024
    assert sum(path.stat().st_size for path in figures) <= 400 * 1024
    for path in heads:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGBA", (256, 256))
            assert image.getchannel("A").getextrema() == (0, 255)
    captions = [caption(path) for path in (*heads, *figures)]
    assert all(text.startswith("1girl, solo, ") for text in captions)
    assert sum("closed eyes" in text for text in captions[:13]) == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_png_files_hold_the_picture(mode: str) -> None:
    image = draw(RIHO, 1).convert(mode)
    with Image.open(io.BytesIO(cli.png(image))) as read:
        assert read.mode == mode
        assert read.tobytes() == image.tobytes()


def test_the_world_needs_no_torch() -> None:
    code = "import sys, lorac.mini.draw; assert not {'torch', 'numpy'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)
