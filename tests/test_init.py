"""`lorac init`: a first recipe that plans and passes the linter, whatever folder it is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tomli

from lorac.migrate.start import lengths
from lorac.recipe.load import load
from lorac.recipe.recipe import Recipe
from tests.kohya import article_set, pictures
from tests.running import lorac, refused


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def first(folder: str) -> tuple[str, str, Recipe]:
    """Text of the recipe, what was said beside it, and what it means; it plans and has no findings."""
    done = lorac("init", folder, "-o", "first.toml", "--force")
    assert done.exit_code == 0, done.output
    assert lorac("plan", "first.toml").exit_code == 0
    own = ("--set", 'check.ignore=["L024", "L025"]')  # the pictures here are alike, and small
    assert lorac("check", "first.toml", *own).exit_code == 0, lorac("check", "first.toml", *own).output
    (recipe,) = load([Path("first.toml")])
    return Path("first.toml").read_text(encoding="utf-8"), done.stderr, recipe


def test_a_captioned_folder() -> None:
    pictures(Path("my_riho"), 13, "izumi riho, 1girl, solo", side=600)
    text, said, recipe = first("my_riho")
    (source,) = recipe.sources
    assert (source.trigger, source.repeats, recipe.train.epochs) == (("izumi riho",), 15, 10)
    assert (source.alpha, recipe.tagger.model, recipe.caption.exclude) == (None, None, ("1girl", "solo"))
    assert (recipe.network.dim, recipe.network.alpha, recipe.train.text_encoder_lr) == (16, 8, 5e-5)
    assert all("izumi riho" in str(prompt) for prompt in recipe.sample.prompts)
    assert "bucket_no_upscale" not in text and said == "wrote first.toml\n"
    assert "# [[regularisation]]" in text


def test_the_commented_lines_can_be_used() -> None:
    pictures(Path("riho"), 3, "riho", side=16)
    pictures(Path("1girl"), 40, "1girl")
    text, _, _ = first("riho")
    for line in ("[[regularisation]]", 'path = "1girl"', 'caption = "1girl"', "bucket_no_upscale = true"):
        assert f"# {line}\n" in text
        text = text.replace(f"# {line}\n", f"{line}\n")
    Path("first.toml").write_text(text, encoding="utf-8")
    (recipe,) = load([Path("first.toml")])
    assert len(recipe.regularisation) == 1 and recipe.train.bucket_no_upscale


def test_pictures_that_are_too_small_for_the_proposed_base_are_warned_of() -> None:
    """Those that are so only for a real base are none to worry about yet: the recipe says what to do then."""
    pictures(Path("riho"), 2, "riho", side=600)
    pictures(Path("riho"), 1, "riho", side=300)
    text, said, recipe = first("riho")
    assert said == "wrote first.toml\n"
    assert "# 1 of 2 pictures have fewer pixels than 512 x 512 and would be\n" in text
    assert "# bucket_no_upscale = true" in text
    assert (recipe.train.base, recipe.train.resolution, recipe.sample.cfg_scale) == ("builtin:mini", None, 4)
    pictures(Path("riho"), 1, "riho", side=100)
    text, said, _ = first("riho")
    assert "1 of 2 pictures have fewer pixels than 128 x 128 (the smallest has 100 x 100); take larger" in said


def test_pictures_like_the_demos_have_no_finding_that_the_recipe_caused() -> None:
    """Of the linter: those that remain are the pictures' own, and nothing is said beside them."""
    demo = Path(__file__).parents[1] / "recipes" / "images"
    for name, own in (("riho_head", {"L014"}), ("riho_fullbody", {"L020"}), ("reg_1girl", set[str]())):
        shutil.copytree(demo / name, name)
        done = lorac("init", name, "-o", f"{name}.toml")
        assert (done.exit_code, done.stderr) == (0, f"wrote {name}.toml\n")
        assert "#:schema" not in Path(f"{name}.toml").read_text(encoding="utf-8"), "there is no schema beside it"
        found = lorac("check", f"{name}.toml").stdout.splitlines()
        assert {line.split()[1] for line in found} == own


def test_pictures_without_captions_get_the_tagger_and_the_folders_name() -> None:
    pictures(Path("井澄_リホ"), 3, clear=True)
    text, _, recipe = first("井澄_リホ")
    assert recipe.sources[0].trigger == ("井澄 リホ",) and recipe.sources[0].alpha == "white"
    assert recipe.tagger.model == "builtin:mini" and "model.onnx" in text and "3 of 3 pictures are transparent" in text


def test_captions_that_name_nobody_get_the_folders_name() -> None:
    pictures(Path("riho"), 3, "1girl, 1boy, solo")
    _, _, recipe = first("riho")
    assert recipe.sources[0].trigger == ("riho",) and recipe.caption.exclude == ("1girl", "1boy", "solo")


def test_captions_of_kohyas_extension() -> None:
    pictures(Path("riho"), 3, "riho", extension=".caption")
    assert first("riho")[2].caption.extension == ".caption"


def test_a_kohya_folder_is_imported() -> None:
    article_set(Path("head"), "head")
    done = lorac("init", "head")
    assert done.stdout == lorac("import", "head").stdout
    assert tomli.loads(done.stdout)["train"]["steps"] == 2808


def test_no_folder_no_pictures_no_overwriting() -> None:
    Path("empty").mkdir()
    Path("file").touch()
    pictures(Path("riho"), 1)
    Path("riho.toml").touch()
    assert refused("init", "rihoo") == ['"rihoo" does not exist; did you mean "riho"?']
    assert refused("init", "empty")[0].startswith('empty: no pictures in "empty"; lorac reads .bmp')
    assert refused("init", "file") == ["file: is no folder; give the folder of your pictures"]
    assert refused("init", "riho", "-o", "riho.toml") == ["riho.toml: is there already; give --force to replace it"]


def test_the_length_is_1500_to_3000_steps() -> None:
    for count in range(1, 3001):
        repeats, epochs = lengths(count)
        assert 1500 <= count * repeats * epochs <= 3000, count
    assert lengths(10_000) == (1, 1)
