"""Measures against ground truth: drawings whose attributes are known, plain and behind the base's VAE."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from lorac.evaluate.features import broken, features, from_bytes, similarities
from lorac.evaluate.measures import seen
from lorac.evaluate.tags import Words
from lorac.mini.riho import HEADS
from lorac.mini.world import Attributes, Placement, draw, sample
from lorac.recipe.base import base_facts
from lorac.recipe.tagger import MODEL, TAGS, tagger_folder
from lorac.sd import parts
from lorac.sd.checkpoint import load_vae
from lorac.tagger.model import Tagger
from lorac.tagger.vocabulary import from_bytes as probabilities_of
from lorac.tagger.vocabulary import read_tags

FRESH = 78
"""The seed of a world that no training has seen."""
FOLDER = tagger_folder("builtin:mini")
WORDS = Words(read_tags((FOLDER / TAGS).read_bytes(), TAGS))


@cache
def tagger() -> Tagger:
    return Tagger(FOLDER / MODEL, (FOLDER / MODEL).read_bytes(), len(WORDS.tags))


def drawn(a: Attributes, seed: int, placement: Placement | None = None) -> Image.Image:
    image = draw(a, seed, 128, placement)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@cache
def world() -> tuple[tuple[Image.Image, ...], tuple[bool, ...]]:
    """48 fresh dolls of all framings, 24 heads of them, some cut out, and Riho's heads; and which ones are heads."""
    dolls = [sample(FRESH, index) for index in range(72)]
    heads = [replace(a, framing="head only", mannequin=False) for a in dolls[48:]]
    heads = [replace(a, background="transparent background") if i % 3 else a for i, a in enumerate(heads)]
    pictures = [drawn(a, index) for index, a in enumerate([*dolls[:48], *heads])]
    pictures += [drawn(a, index, place) for index, (a, place) in enumerate(HEADS)]
    truth = [a.framing == "head only" for a in dolls[:48]] + [True] * (len(heads) + len(HEADS))
    return tuple(pictures), tuple(truth)


@cache
def behind_the_vae() -> tuple[Image.Image, ...]:
    facts = base_facts("builtin:mini", "", None)
    found, config = parts.open_base(facts.path, "builtin:mini", needs_vae=True)
    vae = load_vae(found.vae, config.vae.groups)
    stack = np.stack([np.asarray(picture) for picture in world()[0]])
    with torch.no_grad():
        x_BCHW = torch.from_numpy(stack).permute(0, 3, 1, 2) / 127.5 - 1
        back = torch.cat([vae.decode(vae.encode(x_BCHW[i : i + 8])[0]) for i in range(0, len(x_BCHW), 8)])
    levels = ((back.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return tuple(Image.fromarray(picture) for picture in levels)


def rows(pictures: tuple[Image.Image, ...] | list[Image.Image]) -> npt.NDArray[np.float64]:
    return from_bytes(b"".join(map(features, pictures)))


@pytest.mark.parametrize("behind", [False, True])
def test_heads_without_a_body_are_told_from_all_other_pictures(behind: bool) -> None:
    pictures, truth = behind_the_vae() if behind else world()[0], np.array(world()[1])
    probabilities = np.array([probabilities_of(tagger().probabilities(picture)) for picture in pictures])
    found = WORDS.severed(seen(WORDS, probabilities, 0.35))
    hits = int((found & truth).sum())
    assert hits / found.sum() >= 0.98, "precision"
    assert hits / truth.sum() >= 0.98, "recall"


def test_drawings_are_not_broken_and_noise_is() -> None:
    usual = rows(world()[0])
    assert not broken(usual, usual).any() and not broken(rows(behind_the_vae()), usual).any()
    generator = np.random.default_rng(0)
    white = [Image.fromarray(generator.integers(0, 256, (128, 128, 3)).astype(np.uint8)) for _ in range(4)]
    grey = [Image.fromarray((128 + 30 * generator.standard_normal((128, 128, 3))).clip(0, 255).astype(np.uint8))]
    cells = [picture.resize((16, 16)).resize((128, 128), Image.Resampling.BICUBIC) for picture in white]
    assert broken(rows(white + grey + cells), usual).all()
    assert broken(rows([Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "#5080f0")]), usual).all()


def test_a_copy_is_nearer_than_any_other_drawing() -> None:
    """Behind the VAE, moved by 2 pixels, mirrored: nearer than what a picture of the same world has by chance."""
    training, fresh = rows(world()[0][:40]), rows(list(world()[0][40:72]))
    copies = [ImageOps.mirror(picture.transform((128, 128), Image.Transform.AFFINE, (1, 0, 2, 0, 1, -2)))
              for picture in behind_the_vae()[:40]]  # fmt: skip
    near = similarities(rows(copies), training)
    assert (near.argmax(axis=1) == np.arange(40)).all()
    assert np.median(near.max(axis=1)) > 0.8 and near.max(axis=1).min() > 0.6
    assert similarities(rows(behind_the_vae()[:40]), training).diagonal().min() > 0.9
    others = similarities(fresh, training).max(axis=1)
    assert np.median(others) < 0.6 and others.max() < 0.9
