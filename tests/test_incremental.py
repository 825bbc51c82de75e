"""The promise of the whole: after any edit a build gives what a clean build gives, and makes nothing it need not make.

The kinds are the real ones, on a base with random weights. `Site` is a folder with a recipe that tests edit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image, PngImagePlugin

from lorac.cli import main
from lorac.digest import Manifest, digest
from lorac.engine.build import build
from lorac.engine.protocol import Failed, Kind, Made, Work
from lorac.errors import InputError, Problem
from lorac.graph.lower import lower
from lorac.kinds.registry import KINDS, SCANNERS
from lorac.recipe.load import load
from lorac.rng import Stream
from lorac.store.blobs import Store
from tests.recipes import toml

SIZES = [(72, 64), (64, 64), (64, 100)]
TAGS = ["1girl", "solo", "smile", "blue hair", "red dress", "standing"]


def picture(number: int) -> Image.Image:
    """Blocks of colour; the number decides the colours and the size."""
    stream = Stream(3, "incremental test", number)
    image = Image.new("RGB", SIZES[number % len(SIZES)], tuple(stream.below(256) for _ in range(3)))
    image.paste(tuple(stream.below(256) for _ in range(3)), (10, 10, 40, 50))
    return image


class Watched:
    """A kind that tells `site.ran` which actions it is asked for: everything that may decide their bytes."""

    def __init__(self, kind: Kind, ran: list[bytes]) -> None:
        self.kind, self._ran = kind, ran
        self.NAME, self.VERSION, self.SHAPE, self.POOL, self.OUTPUTS = (
            kind.NAME, kind.VERSION, kind.SHAPE, kind.POOL, kind.OUTPUTS,
        )  # fmt: skip

    def run(self, work: Work) -> Iterable[Made | Failed]:
        for item in work.items:
            manifest = Manifest()
            manifest.field("kind", (self.NAME, self.VERSION))
            manifest.field("params", (dict(work.params), dict(item.params)))
            manifest.field("shared", dict(work.shared))
            manifest.field("columns", {port: list(column) for port, column in work.columns.items()})
            manifest.field("inputs", dict(item.inputs))
            self._ran.append(manifest.key())
        return self.kind.run(work)


class Site:
    """A project: pictures, captions, recipes; `build` builds it into a store of its own or a clean one."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.recipe: dict[str, Any] = {
            "source": [{"path": "pictures", "repeats": 1, "trigger": ["izumi riho"]}],
            "caption": {"exclude": ["1girl", "solo"], "shuffle_caption": True, "keep_tokens": 1},
            "network": {"dim": 1, "alpha": 1.0},
            "train": {"base": base.as_posix(), "epochs": 2, "learning_rate": 1e-3, "save_every_n_epochs": 1},
        }
        self.ran: list[bytes] = []
        for number in range(2):
            self.draw("pictures", f"絵 {number}", number)
            self.write("pictures", f"絵 {number}", f"1girl, smile, thing {number}")
        self.draw("class", "girl", 7)
        self.write("class", "girl", "1girl, solo, standing")

    def draw(self, folder: str, stem: str, number: int, **options: Any) -> None:
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        picture(number).save(self.root / folder / f"{stem}.png", **options)

    def write(self, folder: str, stem: str, caption: str) -> None:
        (self.root / folder / f"{stem}.txt").write_text(caption, encoding="utf-8")

    def stems(self, folder: str = "pictures") -> list[str]:
        return sorted(path.stem for path in (self.root / folder).glob("*.png"))

    def recipe_files(self) -> list[Path]:
        path = self.root / "r.toml"
        path.write_text(toml(self.recipe), encoding="utf-8")
        return [path]

    def build(self, store: Path, out: Path) -> dict[str, dict[str, Any]]:
        """recipe -> build.json. `ran` then holds the actions that ran. Raises InputError as a build does."""
        self.ran.clear()
        recipes = load(self.recipe_files())
        opened = Store(store)
        try:
            names = [recipe.name for recipe in recipes]
            kinds: dict[str, Kind] = {name: Watched(kind, self.ran) for name, kind in KINDS.items()}
            build(lower(recipes), names, kinds, SCANNERS, opened, out, lambda event: None, jobs=2)
        finally:
            opened.close()
        return {name: json.loads((out / name / "build.json").read_text("utf-8")) for name in names}


def runs(facts: Mapping[str, Any]) -> dict[str, int]:
    """kind -> how many were made, of what build.json says."""
    return {kind: entry["runs"] for kind, entry in facts["kinds"].items() if entry["runs"]}


def outputs(facts: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """file -> SHA-256, of what is really there; build.json must say the same."""
    found = {path.name: digest(path.read_bytes()).hex() for path in folder.iterdir() if path.stem != "build"}
    assert found == {name: entry["sha256"] for name, entry in facts["outputs"].items()}
    return found


# -- the property ----------------------------------------------------------------------------------------------------


class Edits(RuleBasedStateMachine):
    """Any sequence of edits; after each, an incremental build and a clean one are compared, and what ran is checked."""

    root: Path
    base: Path
    clean: dict[bytes, dict[str, str] | set[Problem]]
    """What a clean build gives, by everything that the user's files hold."""
    compared = 0

    @initialize()
    def begin(self) -> None:
        type(self).compared += 1
        self.folder = self.root / str(type(self).compared)
        self.site = Site(self.folder / "site", self.base)
        self.known: set[bytes] = set()
        self.history: list[Path] = []

    @rule(stem=st.sampled_from("abc"), number=st.integers(0, 5), tags=st.lists(st.sampled_from(TAGS), min_size=1))
    def add_or_replace(self, stem: str, number: int, tags: list[str]) -> None:
        self.site.draw("pictures", stem, number)
        self.site.write("pictures", stem, ", ".join(tags))

    @precondition(lambda self: len(self.site.stems()) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        stem = data.draw(st.sampled_from(self.site.stems()))
        for path in (self.site.root / "pictures").glob(f"{stem}.*"):
            path.unlink()

    @rule(data=st.data(), name=st.sampled_from(["0 new", "z 新"]))
    def rename(self, data: st.DataObject, name: str) -> None:
        stem = data.draw(st.sampled_from(self.site.stems()))
        for path in (self.site.root / "pictures").glob(f"{stem}.*"):
            path.replace(path.with_name(name + path.suffix))

    @rule(data=st.data(), level=st.integers(0, 9))
    def save_the_same_pixels_again(self, data: st.DataObject, level: int) -> None:
        path = self.site.root / "pictures" / f"{data.draw(st.sampled_from(self.site.stems()))}.png"
        image = Image.open(path)
        image.load()
        image.save(path, compress_level=level)

    @rule(data=st.data(), tags=st.lists(st.sampled_from(TAGS), max_size=3))
    def caption(self, data: st.DataObject, tags: list[str]) -> None:
        """Write a caption, or delete it."""
        stem = data.draw(st.sampled_from(self.site.stems()))
        if tags:
            self.site.write("pictures", stem, ", ".join(tags))
        else:
            (self.site.root / "pictures" / f"{stem}.txt").unlink(missing_ok=True)

    @rule(
        change=st.one_of(
            st.fixed_dictionaries({"exclude": st.lists(st.sampled_from(TAGS), unique=True, max_size=3)}),
            st.fixed_dictionaries({"shuffle_caption": st.booleans(), "keep_tokens": st.integers(0, 2)}),
            st.fixed_dictionaries({"caption_dropout_rate": st.sampled_from([0.0, 0.5])}),
            st.fixed_dictionaries({"prefix": st.sampled_from(["", "best quality"])}),
        )
    )
    def caption_rules(self, change: dict[str, Any]) -> None:
        self.site.recipe["caption"] |= change

    @rule(
        change=st.one_of(
            st.tuples(st.just("network"), st.fixed_dictionaries({"alpha": st.sampled_from([0.5, 1.0])})),
            st.tuples(
                st.just("network"),
                st.fixed_dictionaries({"targets": st.sampled_from([["unet"], ["unet", "text_encoder"]])}),
            ),
            st.tuples(st.just("train"), st.fixed_dictionaries({"epochs": st.integers(1, 2)})),
            st.tuples(st.just("train"), st.fixed_dictionaries({"seed": st.integers(1, 2)})),
            st.tuples(st.just("train"), st.fixed_dictionaries({"learning_rate": st.sampled_from([1e-3, 1e-4])})),
            st.tuples(st.just("train"), st.fixed_dictionaries({"batch_size": st.integers(1, 2)})),
            st.tuples(st.just("train"), st.fixed_dictionaries({"save_every_n_epochs": st.integers(0, 1)})),
            st.tuples(st.just("train"), st.fixed_dictionaries({"clip_skip": st.integers(1, 2)})),
            st.tuples(st.just("output"), st.fixed_dictionaries({"comment": st.sampled_from(["", "a comment"])})),
            st.tuples(st.just("output"), st.fixed_dictionaries({"precision": st.sampled_from(["fp16", "fp32"])})),
        )
    )
    def set_values(self, change: tuple[str, dict[str, Any]]) -> None:
        section, values = change
        self.site.recipe[section] = {**self.site.recipe.get(section, {}), **values}

    @rule(repeats=st.integers(1, 2), trigger=st.sampled_from([[], ["izumi riho"]]))
    def set_source(self, repeats: int, trigger: list[str]) -> None:
        self.site.recipe["source"][0] |= {"repeats": repeats, "trigger": trigger}

    @rule()
    def toggle_regularisation(self) -> None:
        if self.site.recipe.pop("regularisation", None) is None:
            self.site.recipe["regularisation"] = [{"path": "class"}]

    @rule()
    def toggle_sample(self) -> None:
        if self.site.recipe.pop("sample", None) is None:
            self.site.recipe["sample"] = {"prompts": ["izumi riho"], "steps": 1, "strengths": [1.0], "sampler": "ddim"}

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        """Put everything back as it was once."""
        backup = data.draw(st.sampled_from(self.history))
        shutil.rmtree(self.site.root)
        shutil.copytree(backup, self.site.root)
        self.site.recipe = json.loads((backup / "recipe.json").read_text("utf-8"))

    @invariant()
    def incremental_is_clean(self) -> None:
        if not hasattr(self, "site"):
            return
        state = self._state()
        if state not in self.clean:
            self.clean[state] = self._result(self.folder / f"clean {state.hex()[:8]}", self.folder / "clean out")
            shutil.rmtree(self.folder / "clean out", ignore_errors=True)
        found = self._result(self.folder / "store", self.folder / "out")
        assert found == self.clean[state]
        assert not self.known & set(self.site.ran), "an action ran whose key was known"
        self.known |= set(self.site.ran)
        backup = self.folder / f"backup {len(self.history)}"
        shutil.copytree(self.site.root, backup)
        (backup / "recipe.json").write_text(json.dumps(self.site.recipe), encoding="utf-8")
        self.history.append(backup)

    def _result(self, store: Path, out: Path) -> dict[str, str] | set[Problem]:
        try:
            facts = self.site.build(store, out)["r"]
        except InputError as error:
            return set(error.problems)
        return outputs(facts, out / "r")

    def _state(self) -> bytes:
        manifest = Manifest([("recipe", json.dumps(self.site.recipe, sort_keys=True))])
        for path in sorted(self.site.root.rglob("*.*")):
            if path.suffix in (".png", ".txt"):
                manifest.field(path.relative_to(self.site.root).as_posix(), path.read_bytes())
        return manifest.key()


def test_after_any_edits_an_incremental_build_gives_what_a_clean_build_gives(tiny_base: Path, tmp_path: Path) -> None:
    class Here(Edits):
        root, base, clean = tmp_path, tiny_base, {}

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=5,  # the first two are trivial
            stateful_step_count=8,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # shrinking would take hours; the steps are printed
        ),
    )
    assert len(Here.clean) > 15


# -- what one edit costs: exact counts, and the explanation ----------------------------------------------------------

ALL = {
    "weights": 1, "image": 3, "caption": 3, "tokens": 3, "latent": 3,
    "schedule": 1, "train": 2, "export": 2, "draw": 2, "sidecar": 1, "report": 1,
}  # fmt: skip
AFTER_TRAINING = {"export": 2, "draw": 1, "sidecar": 1, "report": 1}
AFTER_CAPTION = {"schedule": 1, "train": 2, **AFTER_TRAINING}


@pytest.fixture(scope="module")
def built_site(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A project that has been built, with regularisation pictures and a sample."""
    site = Site(tmp_path_factory.mktemp("built") / "site", tiny_base)
    site.recipe |= {
        "regularisation": [{"path": "class"}],
        "sample": {"prompts": ["izumi riho"], "steps": 1, "strengths": [1.0], "sampler": "ddim"},
        "output": {"comment": "first"},
    }
    assert runs(site.build(site.root / "store", site.root / "out")["r"]) == ALL
    return site


@pytest.fixture
def site(built_site: Site, tmp_path: Path) -> Iterator[Site]:
    """A copy of it, store and all, in another place."""
    shutil.copytree(built_site.root, tmp_path / "site")
    copy = Site.__new__(Site)
    copy.root, copy.recipe, copy.ran = tmp_path / "site", json.loads(json.dumps(built_site.recipe)), []
    before = Path.cwd()
    os.chdir(copy.root)
    yield copy
    os.chdir(before)


def made(site: Site) -> dict[str, int]:
    """Build; kind -> how many of it were made."""
    return runs(site.build(site.root / "store", site.root / "out")["r"])


def lorac(*arguments: str) -> str:
    done = CliRunner().invoke(main, [*arguments, "--store", "store"])
    assert done.exit_code == 0, done.output
    return done.output


def why(site: Site) -> str:
    site.recipe_files()
    return lorac("why", "r.toml")


def test_a_project_that_moved_makes_nothing(site: Site) -> None:
    shutil.rmtree(site.root / "out")
    assert made(site) == {}
    outputs(site.build(site.root / "store", site.root / "out")["r"], site.root / "out" / "r")


def test_one_caption_makes_one_caption_and_what_is_trained_on_it(site: Site) -> None:
    site.write("pictures", "絵 1", "1girl, frown, thing 1")
    assert "絵 1" in why(site)
    assert made(site) == {"caption": 1, "tokens": 1, **AFTER_CAPTION}
    text = why(site)
    assert "caption changed: 絵 1.png" in text
    assert len(text.splitlines()) < 40
    site.write("pictures", "絵 1", "1girl, smile, thing 1")
    assert made(site) == {}


def test_an_excluded_tag_stops_at_the_caption(site: Site) -> None:
    site.write("pictures", "絵 1", "1girl, solo, smile, thing 1")
    assert made(site) == {"caption": 1, "report": 1}  # which says what the rules left out


def test_the_same_pixels_in_another_file_stop_at_the_image(site: Site) -> None:
    for options in ({"compress_level": 0}, {"pnginfo": _comment("edited")}, {"dpi": (72, 72)}):
        site.draw("pictures", "絵 1", 1, **options)
        assert made(site) == {"image": 1}
    text = why(site)
    assert "picture changed: 絵 1.png" in text
    assert "latent" not in text


def _comment(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", text)
    return info


def test_a_new_picture_makes_one_image_and_one_latent(site: Site) -> None:
    site.draw("pictures", "絵 2", 4)
    site.write("pictures", "絵 2", "1girl, smile, thing 2")
    assert "added: 絵 2.png" in why(site)
    assert made(site) == {"image": 1, "latent": 1, "caption": 1, "tokens": 1, **AFTER_CAPTION}
    assert "added: 絵 2.png" in why(site)


def test_a_removed_picture_makes_no_picture(site: Site) -> None:
    for path in (site.root / "pictures").glob("絵 0.*"):
        path.unlink()
    assert made(site) == AFTER_CAPTION
    assert "removed: 絵 0.png" in why(site)


def test_a_renamed_picture_that_keeps_its_place_is_only_reported(site: Site) -> None:
    for path in (site.root / "pictures").glob("絵 1.*"):
        path.rename(path.with_name(f"絵 1b{path.suffix}"))
    assert made(site) == {"report": 1}


def test_another_comment_makes_the_files_and_the_report(site: Site) -> None:
    site.recipe["output"]["comment"] = "second"
    assert "second" in why(site)
    assert made(site) == {"export": 2, "sidecar": 1, "report": 1}
    text = why(site)
    assert '"first" → "second"' in text
    assert "train" not in text


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("train", {"seed": 5}, {"schedule": 1, "train": 2, **AFTER_TRAINING}),
        ("train", {"weight_decay": 0.02}, {"train": 2, **AFTER_TRAINING}),
        ("network", {"alpha": 0.5}, {"train": 2, **AFTER_TRAINING}),
        ("sample", {"steps": 2}, {"draw": 2, "sidecar": 1, "report": 1}),
        ("sample", {"prompts": ["izumi riho", "1girl"]}, {"draw": 2, "sidecar": 1, "report": 1}),
        ("sample", {"prompts": ["1girl", "izumi riho"]}, {"draw": 2, "sidecar": 1, "report": 1}),
        ("sample", {"strengths": [0.5, 1.0]}, {"draw": 1, "sidecar": 1, "report": 1}),
        ("output", {"precision": "fp32"}, {"export": 2}),
        ("output", {"preferred_weight": 0.2}, {"sidecar": 1}),
        ("output", {"notes": "head only"}, {"sidecar": 1}),
        ("caption", {"exclude": ["1girl", "solo", "smile"]}, {"caption": 2, "tokens": 2, **AFTER_CAPTION}),
        (
            "caption",
            {"exclude": ["1girl", "solo", "absent tag"]},
            {"caption": 2, "export": 2, "sidecar": 1, "report": 1},
        ),
    ],
)
def test_a_setting_makes_what_it_can_change(
    site: Site, section: str, change: dict[str, Any], expected: dict[str, int]
) -> None:
    before = {key: value for key, value in site.recipe.setdefault(section, {}).items() if key in change}
    site.recipe[section] |= change
    assert made(site) == expected
    for key in change:
        del site.recipe[section][key]
    site.recipe[section] |= before
    assert made(site) == {}


def test_why_names_the_pictures_that_are_drawn_anew(site: Site) -> None:
    site.recipe["sample"] |= {"prompts": ["1girl", "izumi riho"], "strengths": [0.5, 1.0]}
    text = why(site)
    assert re.search(r'draw\[off\] +1 of 2 to make +added: prompt "1girl"\n', text)
    assert re.search(r'draw +3 of 4 to make +added: prompt "1girl", strength 0.5\n', text)
    assert "removed" not in text
    assert made(site) == {"draw": 4, "sidecar": 1, "report": 1}
    site.recipe["sample"] |= {"prompts": ["izumi riho", "1girl"], "strengths": [1.0, 0.5]}
    assert "another order" in why(site)
    assert made(site) == {"sidecar": 1, "report": 1}


def test_a_longer_run_goes_on_from_the_shorter_one(site: Site) -> None:
    """With a constant learning rate the first two epochs are the same."""
    site.recipe["train"]["epochs"] = 3
    assert made(site) == {"schedule": 1, "train": 1, **AFTER_TRAINING, "export": 3}


def test_two_recipes_share_what_they_have_in_common(site: Site) -> None:
    """A second recipe with another alpha: its pictures, captions and schedule are those of the first."""
    site.recipe_files()
    (site.root / "s.toml").write_text('extends = "r.toml"\n[network]\nalpha = 0.5\n', encoding="utf-8")
    done = CliRunner().invoke(main, ["build", "r.toml", "s.toml", "--store", "store", "--out", "out"])
    assert done.exit_code == 0, done.output
    facts = {name: json.loads((site.root / "out" / name / "build.json").read_text("utf-8")) for name in "rs"}
    assert runs(facts["r"]) == {}
    assert runs(facts["s"]) == {"train": 2, **AFTER_TRAINING}
    assert sum(entry["hits"] for entry in facts["s"]["kinds"].values()) == 15
    lone = CliRunner().invoke(main, ["build", "s.toml", "--store", "alone", "--out", "alone out"])
    assert lone.exit_code == 0, lone.output
    alone = json.loads((site.root / "alone out" / "s" / "build.json").read_text("utf-8"))
    assert outputs(alone, site.root / "alone out" / "s") == outputs(facts["s"], site.root / "out" / "s")
