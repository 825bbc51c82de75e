"""Presets: what they set, what wins over them, and that no recipe becomes wrong by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from lorac.errors import InputError
from lorac.recipe import presets
from lorac.recipe.load import load
from lorac.recipe.optimisers import OPTIMISERS
from lorac.recipe.recipe import Recipe
from lorac.recipe.schema import SECTIONS
from lorac.recipe.sections.train import Train
from tests.kohya import pictures
from tests.running import refused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pictures(tmp_path / "pictures", 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "recipe.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def recipe(preset: str, body: str = "", sets: tuple[str, ...] = ()) -> Recipe:
    head = f'preset = "{preset}"\n' if preset else ""
    write(f'{head}[[source]]\npath = "pictures"\n{body}\n' + ("" if "epochs" in body else "[train]\nepochs = 1\n"))
    (found,) = load([Path("recipe.toml")], sets)
    return found


def values(found: Recipe, keys: set[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    return {(section, key): getattr(getattr(found, section), key) for section, key in keys}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_sets_what_its_table_says_and_nothing_else(name: str) -> None:
    expected = {setting.at: setting.value for setting in presets.PRESETS[name]}
    found, bare = recipe(name), recipe("")
    assert values(found, set(expected)) == expected
    derived = {("train", "unet_lr"), ("train", "text_encoder_lr")}  # loading spells them out
    for section, kind in SECTIONS.items():
        if section in ("source", "regularisation"):
            continue
        others = {(section, field.name) for field in msgspec.structs.fields(kind)} - set(expected) - derived
        assert values(found, others) == values(bare, others)


def test_the_article_has_its_hidden_defaults() -> None:
    train = recipe("kohya-2023").train
    assert (train.clip_skip, train.seed, train.max_token_length, train.latents) == (2, 23, 150, "sample")
    assert (train.bucket_list, train.lr_scheduler, train.learning_rate) == ("2023", "cosine_with_restarts", 1e-4)


@pytest.mark.parametrize(
    ("preset", "body", "key", "value"),
    [
        ("modern", "[train]\nepochs = 1\nmax_token_length = 75", "train.max_token_length", 75),
        ("modern", "[train]\nepochs = 1\nlearning_rate = 3e-4", "train.text_encoder_lr", 3e-4),  # not 5e-5
        ("modern", "[train]\nepochs = 1\nunet_lr = 3e-4", "train.text_encoder_lr", 5e-5),
        ("modern", "[network]\ndim = 4", "network.alpha", 2.0),  # keeps alpha / dim
        ("kohya-2023", "[network]\ndim = 1", "network.alpha", 1.0),
        ("kohya-2023", "[network]\nalpha = 1", "network.alpha", 1.0),
        ("modern", '[train]\nepochs = 1\nlr_scheduler = "constant"', "train.lr_warmup_steps", 0),
        ("modern", '[train]\nepochs = 1\noptimizer = "adamw_schedule_free"', "train.lr_scheduler", "constant"),
        ("modern", "[loss]\ndebiased_estimation_loss = true", "loss.min_snr_gamma", None),
        ("modern", "[caption]\nshuffle_caption = false", "caption.shuffle_caption", False),
    ],
)
def test_what_the_recipe_says_wins(preset: str, body: str, key: str, value: Any) -> None:
    section, name = key.split(".")
    assert getattr(getattr(recipe(preset, body), section), name) == value


SCHEDULERS = {
    "constant": "",
    "constant_with_warmup": "",
    "linear": "",
    "cosine": "",
    "cosine_with_restarts": "lr_scheduler_num_cycles = 2",
    "polynomial": "lr_scheduler_power = 2",
    "piecewise_constant": 'lr_scheduler_step_rules = "1:100,0.1"',
    "inverse_sqrt": "lr_scheduler_timescale = 100",
    "cosine_with_min_lr": "lr_scheduler_min_lr_ratio = 0.1",
    "warmup_stable_decay": "lr_decay_steps = 0.98",
    "": "",
}
"""Each with what it needs; the last is the preset's own."""


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("relative", ["", "optimizer_args = {relative_step = false}"])
def test_no_preset_makes_a_recipe_wrong(preset: str, optimizer: str, relative: str) -> None:
    """What a recipe is refused for beside a preset, it is refused for without one, too."""
    if relative and optimizer != "adafactor":
        return
    assert set(SCHEDULERS) == {"", *get_args(get_type_hints(Train)["lr_scheduler"])}
    for scheduler, needs in SCHEDULERS.items():
        rates = ["learning_rate = 1", "unet_lr = 1\ntext_encoder_lr = 0"] if optimizer == "prodigy" else [""]
        for rate in rates:
            chosen = f'lr_scheduler = "{scheduler}"' if scheduler else ""
            body = f'[train]\nsteps = 100\noptimizer = "{optimizer}"\n{relative}\n{chosen}\n{needs}\n{rate}'
            assert faults(preset, body) == faults("", body), body


def faults(preset: str, body: str) -> list[tuple[str, str]]:
    head = f'preset = "{preset}"\n' if preset else "\n"
    write(f'{head}[[source]]\npath = "pictures"\n{body}\n')
    try:
        load([Path("recipe.toml")])
    except InputError as error:
        return [(problem.where, problem.cause) for problem in error.problems]
    return []


def test_options_and_the_matrix_win_and_can_name_the_preset() -> None:
    assert recipe("modern", sets=("network.dim=2",)).network.dim == 2
    assert recipe("modern", sets=("preset=kohya-2023",)).network.dim == 128
    write('[[source]]\npath = "pictures"\n[train]\nepochs = 1\n[matrix]\npreset = ["modern", "kohya-2023"]\n')
    assert [found.network.dim for found in load([Path("recipe.toml")])] == [16, 128]


def test_it_lies_below_parents_and_a_childs_preset_replaces_it() -> None:
    write('preset = "kohya-2023"\n[[source]]\npath = "pictures"\n[train]\nepochs = 1\nseed = 5\n', "parent.toml")
    write('extends = "parent.toml"\n', "heir.toml")
    write('extends = "parent.toml"\npreset = "modern"\n', "child.toml")
    heir, child = load([Path("heir.toml"), Path("child.toml")])
    assert (heir.network.dim, heir.train.seed) == (128, 5)
    assert (child.network.dim, child.train.seed, child.train.clip_skip) == (16, 5, None)


def test_an_unknown_preset_is_answered() -> None:
    write('preset = "kohya-2024"\n[[source]]\npath = "pictures"\n[train]\nepochs = 1\n')
    assert refused("plan", "recipe.toml") == [
        'recipe.toml:1: preset is the string "kohya-2024"; did you mean "kohya-2023"?'
    ]


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_messages_name_the_recipes_own_lines(preset: str) -> None:
    text = f'preset = "{preset}"\ntrain = 3\n[[source]]\npath = "pictures"\n[network]\ndim = "x"\n'
    write(text)
    assert {message.split(":")[1] for message in refused("plan", "recipe.toml")} == {"2", "6"}


def test_the_table_has_each_key_once_with_a_reason() -> None:
    rows = presets.table()
    assert len({row.key for row in rows}) == len(rows)
    assert {row.key for row in rows} == {".".join(s.at) for preset in presets.PRESETS.values() for s in preset}
    assert all(row.why and (row.kohya_2023 or row.modern) for row in rows)
    (dim,) = (row for row in rows if row.key == "network.dim")
    assert (dim.default, dim.kohya_2023, dim.modern) == ("4", "128", "16")
    assert len(presets.markdown().splitlines()) == len(rows) + 2
