"""A build with an evaluation, from pictures to evaluation.json, and what a change of it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorac.digest import digest
from lorac.evaluate import figures, trade_off
from lorac.evaluate.features import features
from lorac.kinds.measure import pictures_of
from lorac.sheet import joined
from tests.running import lorac

TABLES = """
[validation]
split = 0.4

[evaluate]
count = 2
tagger = "builtin:mini"
character = ["bob cut"]
"""


@pytest.fixture
def folder(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    made = project()
    file = made / "recipe.toml"
    text = file.read_text("utf-8").replace('["1girl, izumi riho"]', '["1girl, izumi riho", "1girl, school uniform"]')
    text = text.replace("[1.0]", "[0.5, 1.0]").replace("epochs = 2", "epochs = 1").replace("repeats = 2", "repeats = 1")
    file.write_text(text + TABLES, encoding="utf-8")
    monkeypatch.chdir(made)
    return made


def test_a_build_writes_figures_and_measures_only_what_changed(folder: Path) -> None:
    done = lorac("build", "recipe.toml")
    assert done.exit_code == 0, done.output
    path = folder / "build/recipe/evaluation.json"
    made = figures.decode(path.read_bytes())
    assert made.count == 2 and made.strengths == (0.0, 0.5, 1.0)
    assert [(cell.prompt, cell.strength) for cell in made.cells] == [(p, s) for p in (0, 1) for s in (0.0, 0.5, 1.0)]
    assert made.prompts[1].wanted == ("school uniform",)
    assert all(cell.measures["broken"] and cell.measures["broken"].n == 2 for cell in made.cells)
    assert made.held_out is not None and made.held_out.count >= 1 and made.held_out.base > 0
    sidecar = json.loads((folder / "build/recipe/recipe.json").read_text("utf-8"))
    assert made.identity == ("bob cut",)
    assert [score.strength for score in made.trade_off] == [0.5, 1.0]
    assert made.preferred_weight == trade_off.best(made.trade_off)  # of random weights: mostly None
    assert sidecar["preferred weight"] == (made.preferred_weight or 0.0)
    assert str(folder) not in path.read_text("utf-8")

    assert "0 made" in lorac("build", "recipe.toml").output
    recipe = (folder / "recipe.toml").read_text("utf-8")
    (folder / "recipe.toml").write_text(recipe.replace("school uniform", "swimsuit"), encoding="utf-8")
    lines = [line.split() for line in lorac("build", "recipe.toml").output.splitlines() if ":measure" in line]
    assert sorted(" ".join(line[:4]) for line in lines) == [
        "recipe:measure 2 of 4",
        "recipe:measure[off] 1 of 2",
    ]
    again = figures.decode(path.read_bytes())
    assert again.cells[:3] == made.cells[:3] and again.prompts[1].wanted == ("swimsuit",)


def test_a_base_that_no_tagger_knows_is_built_without_an_evaluation(folder: Path) -> None:
    recipe = (folder / "recipe.toml").read_text("utf-8").replace('tagger = "builtin:mini"', "")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert "no evaluation, as no tagger knows what this base draws" in lorac("plan", "recipe.toml").stdout
    done = lorac("build", "recipe.toml", "--out", "without")
    assert done.exit_code == 0, done.output
    assert (folder / "without/recipe/recipe.safetensors").exists()
    assert not (folder / "without/recipe/evaluation.json").exists()


def test_the_pictures_of_a_sheet_are_measured_one_by_one() -> None:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (64, 48, 3)).astype(np.uint8)) for _ in range(3)]
    ppm = b"P6\n48 64\n255\n" + pictures[1].tobytes()
    parts = pictures_of(joined(pictures), 3)
    assert [part.tobytes() for part in parts] == [picture.tobytes() for picture in pictures]
    assert digest(features(parts[1])) == digest(features(pictures_of(ppm, 1)[0]))
