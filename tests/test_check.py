"""`lorac check` as a whole: rules in words, what is ignored, matrices, the article's recipe, how pictures are seen."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lorac.check.explain import anchor, markdown, nearest_code
from lorac.check.looks import HASHED, Look, difference_hash, look
from lorac.check.material import head_shaped
from lorac.check.registry import RULES
from lorac.check.rule import Found, rule
from lorac.listing import pictures
from lorac.mini.riho import draw_riho
from lorac.recipe.load import load
from tests.check_project import make_check_project, noise
from tests.running import lorac, refused

RECIPES = Path(__file__).parent.parent / "recipes"
FIRST = """
[[source]]
path = "images/riho_head"
repeats = 36
trigger = ["izumi riho"]
alpha = "white"

[[regularisation]]
generate = { transparent = true, count = 400 }
alpha = "white"

[caption]
exclude = ["1girl", "solo", "virtual_youtuber", "blush"]
shuffle_caption = true
keep_tokens = 1

[network]
dim = 128
alpha = 128

[train]
steps = 2808
learning_rate = 1e-4
lr_scheduler = "cosine_with_restarts"
lr_warmup_steps = 0.01
max_token_length = 150
save_every_n_epochs = 1

[sample]
prompts = ["1girl, izumi riho", "1girl, izumi riho, school uniform, standing, school"]
"""
"""The article's first recipe: 13 heads, 400 transparent pictures, alpha = dim; steps as the popup counted them."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_check_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def append(project: Path, text: str) -> None:
    with (project / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")


# -- the article -----------------------------------------------------------------------------------


def test_the_article_s_first_recipe_is_told_what_the_article_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Severed heads from transparent regularisation and from alpha = dim, epochs half as many; and nothing else."""
    shutil.copytree(RECIPES / "images" / "riho_head", tmp_path / "images" / "riho_head")
    (tmp_path / "first.toml").write_text(FIRST, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = lorac("check", "first.toml")
    assert done.exit_code == 1
    assert [line.partition(";")[0] for line in done.stdout.splitlines()] == [
        "first.toml:9: L014 there are only heads to learn from, and the regularisation pictures are transparent: "
        "severed heads",
        "first.toml:19: L015 there are only heads to learn from, and alpha 128 is not below dim 128: severed heads",
        "first.toml:22: L028 2808 steps would be 6 epochs of 468 samples, but with regularisation an epoch has 936 "
        "and they are 3",
    ]
    # What the article came to: ordinary pictures, alpha 1, and a length in epochs.
    learnt = ("regularisation[0].generate.transparent=false", "network.alpha=1", "train.epochs=3")
    done = lorac("check", "first.toml", *(part for one in learnt for part in ("--set", one)))
    assert (done.exit_code, done.stdout) == (0, "")


def test_the_matrix_of_the_article_s_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of alpha x learning rate diverged, gave heads, or stayed under-trained: as the article's table has it."""
    shutil.copytree(RECIPES / "images" / "riho_head", tmp_path / "images" / "riho_head")
    matrix = '\n[matrix]\n"network.alpha" = [128, 1]\n"train.learning_rate" = [1e-4, 1e-3, 5e-5]\n'
    (tmp_path / "runs.toml").write_text(FIRST.replace("steps = 2808", "epochs = 3") + matrix, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = json.loads(lorac("check", "runs.toml", "--format", "json").stdout)
    holds = {(finding["code"], *finding["recipes"]) for finding in found}
    full = ("runs-alpha128-lr1e-4", "runs-alpha128-lr1e-3", "runs-alpha128-lr5e-5")
    assert holds == {
        ("L014", *full, *(name.replace("alpha128", "alpha1") for name in full)),
        ("L015", *full),
        ("L007", "runs-alpha128-lr1e-3"),
        ("L035", "runs-alpha1-lr5e-5"),
    }
    line = next(line for line in lorac("check", "runs.toml").stdout.splitlines() if "L007" in line)
    assert line.endswith("lower alpha (runs-alpha128-lr1e-3)")


def test_a_line_that_recipes_inherit_names_those_it_is_true_of(project: Path) -> None:
    text = (project / "recipe.toml").read_text("utf-8")
    (project / "recipe.toml").write_text(text.replace("alpha = 2", "alpha = 4"), "utf-8")
    (project / "heads.toml").write_text(
        'extends = "recipe.toml"\n[[source]]\npath = "heads"\nalpha = "white"\ntrigger = ["izumi riho"]\nrepeats = 2\n',
        "utf-8",
    )
    (project / "other.toml").write_text('extends = "recipe.toml"\n', "utf-8")
    alone = lorac("check", "heads.toml").stdout
    assert alone.endswith("severed heads; set alpha = 1\n")
    assert lorac("check", "heads.toml", "other.toml").stdout == alone.replace("= 1\n", "= 1 (heads)\n")


# -- heads, places, copies -------------------------------------------------------------------------


def seen(image: Image.Image) -> Look:
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    return look(image.convert("RGB"), None if alpha is None or alpha.getextrema() == (255, 255) else alpha)


def test_the_article_s_heads_are_heads() -> None:
    for picture in pictures(str(RECIPES / "images" / "riho_head")):
        figure = seen(Image.open(picture.path)).figure
        assert figure is not None
        assert head_shaped(figure), picture.name


@pytest.mark.parametrize("framing", ["full body", "cowboy shot", "upper body"])
@pytest.mark.parametrize("pose", ["standing", "sitting", "dancing", "jumping"])
@pytest.mark.parametrize("background", ["transparent background", "black background"])
def test_bodies_are_no_heads(framing: str, pose: str, background: str) -> None:
    figure = seen(draw_riho(1, framing=framing, pose=pose, background=background)).figure
    assert figure is not None
    assert not head_shaped(figure)


def test_where_a_figure_stands() -> None:
    """The same answer for a cut-out and for a plain background, and none for a busy one."""
    for mode, behind in (("RGBA", (0, 0, 0, 0)), ("RGB", (20, 30, 40))):
        image = Image.new(mode, (200, 100), behind)
        image.paste((255, 0, 0, 255)[: len(mode)], (20, 40, 60, 80))
        figure = seen(image).figure
        assert figure is not None
        assert figure.centre == pytest.approx(0.2, abs=0.01)
        assert figure.bottom == pytest.approx(0.8, abs=0.02)
        assert figure.width == pytest.approx(1.0, abs=0.1)
        assert figure.fill == pytest.approx(1.0)
    assert seen(noise(1)).figure is None
    assert seen(Image.new("RGB", (64, 64), "white")).figure is None


def test_the_difference_hash_is_the_published_one() -> None:
    """Krawetz: shrink to one column more than rows, and say of each pixel whether it is brighter than the next."""
    image = noise(5, (136, 128)).convert("L")
    grey = image.resize((HASHED + 1, HASHED), Image.Resampling.BOX).tobytes()
    rows = [grey[start : start + HASHED + 1] for start in range(0, len(grey), HASHED + 1)]
    bits = "".join("1" if row[x] > row[x + 1] else "0" for row in rows for x in range(HASHED))
    assert f"{difference_hash(grey):0256b}" == bits
    assert seen(image.convert("RGB")).hash == int(bits, 2)


def test_copies_survive_compression_and_scaling_and_siblings_do_not() -> None:
    heads = [Image.open(picture.path) for picture in pictures(str(RECIPES / "images" / "riho_head"))]
    for number, head in enumerate(heads):
        white = Image.new("RGBA", head.size, "white")
        white.alpha_composite(head.convert("RGBA"))
        buffer = io.BytesIO()
        white.convert("RGB").resize((200, 200), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=75)
        copy = seen(Image.open(buffer))
        assert [copy.copies(seen(other)) for other in heads] == [other == number for other in range(len(heads))]


def test_another_expression_of_the_same_pose_is_no_copy() -> None:
    smile, neutral, aside = (
        seen(draw_riho(1, framing="cowboy shot", background="black background", expression=expression, turn=turn))
        for expression, turn in (("smile", 0), ("", 0), ("smile", 4.5))
    )
    assert smile.copies(smile)
    assert not smile.copies(neutral)
    assert not smile.copies(aside)


# -- ignore, codes, formats ------------------------------------------------------------------------


def test_ignored_rules_are_silent_and_unknown_ones_an_error(project: Path) -> None:
    assert lorac("check", "recipe.toml", "--set", "network.dim=1", "--set", "check.ignore=['L016']").exit_code == 0
    assert lorac("check", "recipe.toml", "--set", "network.dim=1", "--set", "check.ignore=['l016']").exit_code == 0
    append(project, '[check]\nignore = ["L016", "L14", "rank-won", "X", "L099"]')
    assert refused("check", "recipe.toml") == [
        'recipe.toml:28: there is no rule "L14"; did you mean "L014"?',
        'recipe.toml:28: there is no rule "rank-won"; did you mean "L016"?',
        'recipe.toml:28: there is no rule "X"; see lorac check --list',
        'recipe.toml:28: there is no rule "L099"; see lorac check --list',
    ]


def test_json_has_file_line_and_code(project: Path) -> None:
    (project / "pictures" / "0.txt").write_text("(smile:1.2), orange eyes", "utf-8")
    done = lorac("check", "recipe.toml", "--format", "json", "--set", "caption.exclude=['solo']")
    assert done.exit_code == 1
    assert done.stderr == ""
    found = {finding["code"]: finding for finding in json.loads(done.stdout)}
    assert found["L031"] == {
        "code": "L031",
        "name": "prompt-syntax",
        "file": "pictures/0.txt",
        "line": None,
        "message": 'the caption has "(smile:1.2)", which is no weight here; write plain tags',
        "recipes": ["recipe"],
    }
    (project / "recipe.toml").write_text((project / "recipe.toml").read_text("utf-8").replace('"1girl", ', ""), "utf-8")
    found = {f["code"]: f for f in json.loads(lorac("check", "recipe.toml", "--format", "json").stdout)}
    assert (found["L003"]["file"], found["L003"]["line"]) == ("recipe.toml", 12)
    assert (
        json.loads(lorac("check", "recipe.toml", "--format", "json", "--set", "check.ignore=['L003', 'L031']").stdout)
        == []
    )


def test_explain_needs_no_recipe() -> None:
    for code, made in RULES.items():
        text = lorac("check", "--explain", code).stdout
        assert text.startswith(f"{code} {made.name}: {made.summary}\n\nWhy is this bad?  {made.why}\n\nBefore:\n    ")
        assert text.endswith(f"\n\nRemedy: {made.remedy}\n")
        assert lorac("check", "--explain", code.lower()).stdout == text
        assert lorac("check", "--explain", made.name).stdout == text
    assert lorac("check", "--explain", "all").stdout.count("Why is this bad?") == len(RULES)
    assert [line.split()[0] for line in lorac("check", "--list").stdout.splitlines()] == list(RULES)
    assert [row["code"] for row in json.loads(lorac("check", "--list", "--format", "json").stdout)] == list(RULES)


def test_an_unknown_code_is_answered_with_the_nearest() -> None:
    assert refused("check", "--explain", "L14") == [
        '--explain: there is no rule "L14"; did you mean L014 (heads-without-regularisation)?'
    ]
    assert nearest_code("l3") == "L003"
    assert nearest_code("L099") is None
    assert nearest_code("one-outfits") == "L020"
    assert refused("check", "--explain", "banana") == ['--explain: there is no rule "banana"; see lorac check --list']
    assert lorac("check").exit_code == 2


def test_only_the_list_of_rules_has_a_page(project: Path) -> None:
    done = lorac("check", "recipe.toml", "--format", "markdown")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--format markdown goes only with --list." in done.stderr


# -- the registry ----------------------------------------------------------------------------------


def test_codes_follow_each_other_and_names_are_unique() -> None:
    assert list(RULES) == [f"L{number:03}" for number in range(1, len(RULES) + 1)]
    assert len({made.name for made in RULES.values()}) == len(RULES)
    assert len({made.find for made in RULES.values()}) == len(RULES)
    for made in RULES.values():
        assert made.summary[-1] not in ".!"
        assert made.why.endswith(".")
        assert made.remedy.endswith(".")
        assert made.before != made.after


def test_a_docstring_of_another_form_is_refused() -> None:
    def nameless(material: object) -> Found:
        """L099: no name

        Why: none.
        """
        yield "", ""

    with pytest.raises(ValueError, match="nameless"):
        rule(nameless)


def test_examples_in_a_recipe_s_words_are_valid_keys() -> None:
    """Lines of examples that look like a recipe have sections and keys that there are."""
    from lorac.recipe.schema import SECTIONS, keys

    known = {key for section in SECTIONS.values() for key in keys(section)}
    for made in RULES.values():
        for line in [*made.before.splitlines(), *made.after.splitlines()]:
            if line.startswith("["):
                assert line.strip("[]") in SECTIONS, (made.code, line)
            elif " = " in line and ":" not in line.partition(" = ")[0]:
                assert line.partition(" = ")[0] in known, (made.code, line)


def test_the_committed_page_is_current() -> None:
    page = (RECIPES / "RULES.md").read_text("utf-8")
    assert page == markdown(), "run: lorac check --list --format markdown > recipes/RULES.md"
    assert lorac("check", "--list", "--format", "markdown").stdout == page
    headings = {
        line.removeprefix("## ").lower().replace(" ", "-") for line in page.splitlines() if line.startswith("## ")
    }
    assert headings == {anchor(made) for made in RULES.values()}


def test_a_check_reads_a_picture_once_for_all_points(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorac.check.findings import findings

    append(project, '[matrix]\n"network.alpha" = [1, 2]')
    done: list[tuple[int, int]] = []
    recipes = load([Path("recipe.toml")], [], None)
    assert findings(recipes, lambda number, of: done.append((number, of))) == []
    assert len(recipes) == 2
    assert done == [*((number, 6) for number in range(1, 7)), *((number, 8) for number in range(1, 9))], "and the class"
