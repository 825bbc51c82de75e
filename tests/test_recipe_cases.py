"""Golden recipes: `cases/recipes/NAME.toml` holds a recipe, a line `# output`, and what lorac says about it.

`# file: PATH` starts another file, `# options: …` gives `--set` and `--base`. A case that loads lists its recipes,
one a line, with their matrix points and the settings named by `# show: …`. The folder has the pictures of PICTURES.
"""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorac.errors import InputError
from lorac.recipe.load import load
from lorac.recipe.recipe import Recipe

CASES = sorted((Path(__file__).parent / "cases" / "recipes").glob("*.toml"))
PICTURES = (
    "images/riho_head/1.png",
    "images/reg_1girl/1.png",
    "kohya/36_izumi_riho/1.png",
    "kohya/16_kk_dancer/1.png",
    "mixed/36_riho/1.png",
    "mixed/riho/1.png",
    "mixed/0_none/1.png",
    "mixed/loose.png",
    "日本語/1.png",
    "odd[1]/1.png",
    "base.safetensors",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in PICTURES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_case(case: Path, folder: Path) -> None:
    given, expected = case.read_text(encoding="utf-8").split("# output\n")
    assert said_about(given, case.name, folder) == expected


LINES = sorted(
    {line for case in CASES for line in case.read_text(encoding="utf-8").splitlines() if "options" not in line}
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(LINES), max_size=10))
def test_no_mixture_of_lines_is_more_than_an_input_error(folder: Path, lines: list[str]) -> None:
    (folder / "mixture.toml").write_text("\n".join(lines), encoding="utf-8")
    with suppress(InputError):
        load([Path("mixture.toml")])


def said_about(given: str, name: str, folder: Path) -> str:
    """Everything that `load` says about the recipe `given`, which is called `name`."""
    parts = re.split(r"^# file: (.+)\n", given, flags=re.MULTILINE)
    for file, text in zip([name, *parts[1::2]], parts[::2], strict=True):
        (folder / file).write_text(text, encoding="utf-8")
    words = shlex.split(" ".join(re.findall(r"^# options: (.+)$", given, re.MULTILINE)))
    options = list(zip(words[::2], words[1::2], strict=True))
    sets = [value for option, value in options if option == "--set"]
    base = next((value for option, value in options if option == "--base"), None)
    keys = " ".join(re.findall(r"^# show: (.+)$", given, re.MULTILINE)).split()
    try:
        recipes = load([Path(name)], sets, base)
    except InputError as error:
        return f"{error}\n"
    return "".join(shown(recipe, keys, folder) for recipe in recipes)


def shown(recipe: Recipe, keys: list[str], folder: Path) -> str:
    words = [f"{recipe.name}:", *(f"{key}={value}" for key, value in recipe.point)]
    for key in keys:
        value: Any = recipe.effective()
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, (list, tuple)) else value[part]
        where = recipe.where(re.sub(r"[.]([0-9]+)", r"[\1]", key))
        if key.startswith(("source.", "regularisation.")):
            sets = recipe.sources if key.startswith("source.") else recipe.regularisation
            where = sets[int(key.split(".")[1])].where
        words.append(f"{key}={value} ({where})")
    return " ".join(words).replace(f"{folder}", "HERE").replace("\\", "/") + "\n"
