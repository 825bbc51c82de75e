"""Loading recipes: files that cannot be read, several recipes, the strict reader against msgspec's own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorac.captions import Rules
from lorac.errors import InputError
from lorac.recipe.load import load
from lorac.recipe.recipe import Recipe
from lorac.recipe.schema import SECTIONS, Document
from lorac.recipe.validate import read_document

RECIPES = Path(__file__).parent.parent / "recipes"
MINIMAL = '[[source]]\npath = "pictures"\n[train]\nepochs = 1\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, text: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(*paths: Path, sets: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as caught:
        load(paths, sets)
    return str(caught.value)


def one(text: str, *sets: str) -> Recipe:
    (recipe,) = load([written("x.toml", text)], sets)
    return recipe


def test_a_byte_order_mark_is_harmless() -> None:
    assert one("\ufeff#:schema lorac.schema.json\n" + MINIMAL).where("train.epochs") == "x.toml:5"


def test_windows_line_ends_keep_line_numbers() -> None:
    assert one(MINIMAL.replace("\n", "\r\n")).where("train.epochs") == "x.toml:4"


def test_not_utf8() -> None:
    path = written("x.toml", 'a = 1\n# りほ\nb = "りほ"\n'.encode("cp932"))
    assert complaint(path) == "x.toml:2: this line is not UTF-8; save the recipe as UTF-8"


def test_not_a_recipe_at_all() -> None:
    path = written("x.toml", b"\0" * (1 << 20) + b"\0")
    assert complaint(path) == "x.toml: 1048577 bytes are too many for a recipe; is it the right file?"


def test_deep_nesting() -> None:
    assert "x.toml: tables or lists are nested too deeply" in complaint(written("x.toml", "a = " + "[" * 100_000))


def test_a_folder_is_no_recipe() -> None:
    assert complaint(Path("pictures")).startswith('"pictures" is a folder and no recipe; `lorac init` makes')


def test_problems_of_all_recipes_come_together() -> None:
    good, bad, worse = (written(f"r/{name}.toml", text) for name, text in [("a", MINIMAL), ("b", "x = 1"), ("c", "=")])
    lines = complaint(Path("missing.toml"), good, bad, worse).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        'there is no recipe "missing.toml"; there is no "missing.toml" in the current folder',
        "r/a.toml",
        "r/b.toml",
        "r/b.toml",
        "r/b.toml",
        "r/c.toml",
    ]


def test_recipes_of_one_name() -> None:
    first = written("a/riho.toml", MINIMAL.replace("pictures", "../pictures"))
    second = written("b/other.toml", MINIMAL.replace("pictures", "../pictures") + '[output]\nname = "Riho"\n')
    assert complaint(first, second) == (
        'b/other.toml:6: the output name "Riho" is also that of a/riho.toml; give one of them another name in [output]'
    )


def test_a_file_outside_the_working_folder_is_named_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("x.toml", "x = 1\n" + MINIMAL).absolute()
    monkeypatch.chdir(folder / "pictures")
    assert complaint(path).startswith(f"{path.as_posix()}:1: unknown key")


def test_where() -> None:
    recipe = one(MINIMAL + "[output]\n", "train.seed=7")
    assert recipe.where("train.seed") == "--set train.seed=7"
    assert recipe.where("source[0].path") == "x.toml:2"
    assert recipe.where("source[0].trigger") == "x.toml:1"
    assert recipe.where("output.comment") == "x.toml:5"
    assert recipe.where("network.dim") == "x.toml"


def test_rules_hold_for_sources_only() -> None:
    text = MINIMAL.replace('"pictures"', '"pictures"\ntrigger = ["riho"]')
    text += '[caption]\nexclude = ["solo"]\nreplace = { "b" = "x", "a" = "y" }\nprefix = "p"\nsuffix = "s"\n'
    recipe = one(text + '[[regularisation]]\npath = "pictures"\n')
    expected = Rules(("riho",), ("solo",), (("a", "y"), ("b", "x")), "p", "s")
    assert recipe.rules(recipe.sources[0]) == expected
    assert recipe.rules(recipe.regularisation[0]) == Rules()


def test_numbers_have_one_type_however_they_are_written() -> None:
    whole, point = one(MINIMAL + "[network]\nalpha = 1\n"), one(MINIMAL + "[network]\nalpha = 1.0\n")
    assert repr(whole.network.alpha) == repr(point.network.alpha) == "1.0"
    assert isinstance(one(MINIMAL + "lr_warmup_steps = 0\n").train.lr_warmup_steps, int)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("riho", None),
        ("リホ 1.0", None),
        ("a<b", "contains '<'"),
        ("a\\b", "contains"),
        ("../x", "contains '/'"),
        ("CON", "is reserved"),
        ("com1.x", "is reserved"),
        (" x", "begins or ends"),
        ("x.", "begins or ends"),
        (".x", "begins with a point"),
        ("リ" * 41, "longer than 120 bytes"),
    ],
)
def test_output_names(name: str, fault: str | None) -> None:
    text = MINIMAL + f"[output]\nname = '{name}'\n"
    if fault is None:
        assert one(text).name == name
    else:
        assert f"x.toml:6: name in [output] {fault}" in complaint(written("x.toml", text)).replace(
            "is longer", "longer"
        )


def test_a_recipe_file_whose_name_is_no_name() -> None:
    path = written("a,b.toml", MINIMAL)
    assert complaint(path) == "a,b.toml: the name \"a,b\" contains ','; give a name in [output]"


def keys_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with some of a section's keys, right and wrong values, and some unknown keys."""
    scalars = [
        0,
        1,
        3,
        16,
        64,
        75,
        -1,
        0.5,
        1.0,
        1e-4,
        math.nan,
        True,
        "",
        "a",
        "white",
        "#12aB34",
        "cosine",
        "unet",
        ".txt",
    ]
    values = st.recursive(
        st.sampled_from(scalars),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "a"]), inner, max_size=2)
        ),
        max_leaves=4,
    )
    names = [field.name for field in msgspec.structs.fields(kind)]
    return st.dictionaries(st.sampled_from([*names, "unknown"]), values, max_size=4)


def documents() -> st.SearchStrategy[dict[str, Any]]:
    sections = {
        name: st.lists(keys_of(kind), max_size=2) if name in ("source", "regularisation") else keys_of(kind)
        for name, kind in SECTIONS.items()
    }
    return st.fixed_dictionaries({}, optional=sections)


def floats(value: object) -> Iterator[float]:
    """All floats in TOML values."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from floats(inner)


@given(documents())
def test_the_reader_accepts_what_msgspec_accepts(data: dict[str, Any]) -> None:
    document, findings = read_document(data)
    try:
        expected = msgspec.convert(data, Document)
    except msgspec.ValidationError:
        assert findings
    else:
        assert bool(findings) == any(not math.isfinite(number) for number in floats(data))
        assert findings or document == expected


def test_the_front_end_imports_nothing_heavy() -> None:
    code = (
        "import sys, lorac.recipe.load, lorac.recipe.jsonschema, lorac.recipe.arithmetic, lorac.recipe.buckets\n"
        "print({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'PIL', 'rich', 'transformers'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=RECIPES.parent)
    assert done.stdout.strip() == "set()"


def test_the_article_recipe() -> None:
    (recipe,) = load([RECIPES / "riho_head.toml"])
    assert recipe.name == "riho_head"
    (source,), (regularisation,) = recipe.sources, recipe.regularisation
    assert (source.repeats, source.trigger, source.alpha) == (36, ("izumi riho",), "white")
    assert Path(source.path) == RECIPES / "images" / "riho_head"
    assert Path(regularisation.path) == RECIPES / "images" / "reg_1girl"
    assert recipe.caption.exclude[:4] == ("1girl", "solo", "virtual_youtuber", "blush")
    assert (recipe.caption.shuffle_caption, recipe.caption.keep_tokens) == (True, 1)
    assert (recipe.network.dim, recipe.network.alpha) == (128, 128)
    train = recipe.train
    assert (train.epochs, train.steps, train.batch_size, train.seed) == (3, None, 1, 23)
    assert (train.text_encoder_lr, train.unet_lr) == (1e-4, 1e-4)
    assert (train.lr_scheduler, train.lr_warmup_steps, train.max_token_length) == ("cosine_with_restarts", 0.01, 150)
    assert (recipe.loss.prior_loss_weight, train.save_every_n_epochs, train.clip_skip) == (1.0, 1, None)
    assert [prompt.prompt for prompt in recipe.sample.prompts if not isinstance(prompt, str)] == [
        "1girl, izumi riho, looking at viewer, smile, simple background",
        "1girl, izumi riho, school uniform, upper body, school",
        "1girl, izumi riho, swimsuit, ocean",
    ]
    assert recipe.sample.strengths == (0.5, 0.7, 1.0)
