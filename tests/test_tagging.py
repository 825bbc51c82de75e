"""The tagger in a build and in `lorac tag`: what runs again after an edit, whose words win, what is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from lorac import tagging
from lorac.digest import digest
from lorac.engine import events
from lorac.engine.build import make
from lorac.errors import InputError
from lorac.graph.lower import lower
from lorac.kinds.registry import KINDS, SCANNERS
from lorac.listing import pictures
from lorac.mini import world
from lorac.recipe.load import load
from lorac.store.blobs import Store
from lorac.tagger.vocabulary import Thresholds, chosen, read_tags
from tests.onnx_files import model, table, weights, write_tagger
from tests.recipes import toml
from tests.running import lorac, refused

NAMES = [f"tag_{letter}" for letter in "abcdefghijklmnop"] + ["^_^", "long_hair"]
COLOURS = {"絵 0": (250, 10, 10), "絵 1": (10, 250, 10), "ß ü": (40, 40, 250)}


def seen(colour: tuple[int, int, int], threshold: float = 0.35, character: float | None = None) -> list[str]:
    """What the test's tagger says of a picture of one colour, by its formula."""
    count = 4 + len(NAMES) + 1
    bgr = [value / 255 - 0.5 for value in reversed(colour)]
    found = [1 / (1 + 2.718281828459045 ** -float(row @ bgr)) for row in weights(count).astype(float)]
    tags = read_tags(table(NAMES, ["some_one"]).encode(), "")
    return chosen(tags, found, Thresholds(threshold, threshold if character is None else character))


class Site:
    """Pictures of one colour without texts, a tagger, and a recipe that tests change; `captions` makes the captions."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        for stem, colour in COLOURS.items():
            self.draw("pictures", stem, colour)
        write_tagger(root / "tagger", NAMES, ["some_one"])
        self.recipe: dict[str, Any] = {
            "source": [{"path": "pictures", "trigger": ["izumi riho"]}],
            "caption": {},
            "tagger": {"model": "tagger"},
            "train": {"base": base.as_posix(), "steps": 1},
        }
        self.ran: Counter[str] = Counter()

    def draw(self, folder: str, stem: str, colour: tuple[int, int, int], **options: Any) -> None:
        (self.root / folder).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(self.root / folder / f"{stem}.png", **options)

    def text(self, stem: str, folder: str = "pictures") -> Path:
        return self.root / folder / f"{stem}.txt"

    def save(self) -> Path:
        path = self.root / "r.toml"
        path.write_text(toml(self.recipe), encoding="utf-8")
        return path

    def captions(self) -> dict[str, list[str]]:
        """stem -> tags of the final caption. `ran` then says how many of each kind were made."""
        self.ran = Counter()

        def listen(event: events.Event) -> None:
            if isinstance(event, events.NodeFinished) and event.ran:
                self.ran[event.kind] += event.ran

        graph = lower(load([self.save()])).part(lambda node: node.kind == "caption")
        store = Store(self.root / "store")
        try:
            results = make(graph, KINDS, SCANNERS, store, listen, jobs=2)
            return {
                Path(name).stem: store.read(value).decode().split(", ")
                for node in graph.nodes
                if node.kind == "caption"
                for name, value in zip(results[node].names, results[node].column("caption", store), strict=True)
            }
        finally:
            store.close()


@pytest.fixture
def site(tmp_path: Path, tiny_base: Path) -> Site:
    return Site(tmp_path, tiny_base)


# -- in a build ------------------------------------------------------------------------------------------------------


def test_pictures_without_texts_get_what_the_tagger_sees_behind_the_trigger(site: Site) -> None:
    found = site.captions()
    assert found == {stem: ["izumi riho", *seen(colour)] for stem, colour in COLOURS.items()}
    assert len({tuple(tags) for tags in found.values()}) == len(COLOURS), "or the test's tagger says nothing"
    assert site.ran == {"tag": 3, "caption": 3}
    assert site.captions() == found
    assert site.ran == {}


@pytest.mark.parametrize(("threshold", "character"), [(0.8, None), (0.2, None), (0.35, 0.01), (0.01, 0.99)])
def test_thresholds_do_not_run_the_tagger_again(site: Site, threshold: float, character: float | None) -> None:
    before = site.captions()
    site.recipe["tagger"]["threshold"] = threshold
    if character is not None:
        site.recipe["tagger"]["character_threshold"] = character
    after = site.captions()
    assert after == {s: ["izumi riho", *seen(c, threshold, character)] for s, c in COLOURS.items()}
    assert after != before
    assert site.ran == {"caption": 3}


@pytest.mark.parametrize("form", ["{}", "{_}"])
def test_rules_meet_the_tagger_s_tags_in_either_form_and_do_not_run_it_again(site: Site, form: str) -> None:
    before = site.captions()
    excluded = before["絵 0"][1]
    assert " " in excluded
    site.recipe["caption"]["exclude"] = [form.replace("{_}", excluded.replace(" ", "_")).replace("{}", excluded)]
    after = site.captions()
    assert after == {stem: [tag for tag in tags if tag != excluded] for stem, tags in before.items()}
    assert site.ran == {"caption": 3}


def test_a_written_text_wins_and_without_it_the_tags_are_back(site: Site) -> None:
    before = site.captions()
    site.text("絵 0").write_text("by hand", encoding="utf-8")
    assert site.captions() == before | {"絵 0": ["izumi riho", "by hand"]}
    assert site.ran == {"tag": 1, "caption": 1}, "the tag node says that it has nothing to say"
    site.text("絵 0").unlink()
    assert site.captions() == before
    assert site.ran == {}


def test_a_picture_with_a_text_is_not_looked_at(site: Site) -> None:
    (site.root / "tagger" / "model.onnx").write_bytes(b"no model at all")
    for stem in COLOURS:
        site.text(stem).write_text("by hand", encoding="utf-8")
    assert site.captions() == {stem: ["izumi riho", "by hand"] for stem in COLOURS}
    site.text("絵 1").unlink()
    with pytest.raises(InputError, match="is no ONNX model"):
        site.captions()


def test_a_picture_saved_again_is_tagged_again_and_nothing_follows(site: Site) -> None:
    before = site.captions()
    site.draw("pictures", "絵 1", COLOURS["絵 1"], compress_level=0)
    assert site.captions() == before
    assert site.ran == {"tag": 1}


def test_another_model_tags_again_and_another_table_renames(site: Site) -> None:
    before = site.captions()
    names = ["another_name" if name == "tag_a" else name for name in NAMES]
    (site.root / "tagger" / "selected_tags.csv").write_text(table(names, ["some_one"]), encoding="utf-8")
    renamed = {s: ["another name" if tag == "tag a" else tag for tag in tags] for s, tags in before.items()}
    assert renamed != before
    assert site.captions() == renamed


def test_regularisation_pictures_keep_everything_unless_the_recipe_has_their_caption(site: Site) -> None:
    site.draw("class", "girl", (200, 100, 0))
    tags = seen((200, 100, 0))
    site.recipe["regularisation"] = [{"path": "class"}]
    site.recipe["caption"]["exclude"] = tags
    assert site.captions()["girl"] == tags
    assert site.ran["tag"] == 4
    site.recipe["regularisation"] = [{"path": "class", "caption": "1girl"}]
    assert site.captions()["girl"] == ["1girl"]


def test_nothing_above_the_threshold_and_no_trigger_is_a_problem(site: Site) -> None:
    site.recipe["source"] = [{"path": "pictures"}]
    site.recipe["tagger"]["threshold"] = 1.0
    with pytest.raises(InputError) as caught:
        site.captions()
    assert {problem.cause for problem in caught.value.problems} == {"the tagger saw nothing above its threshold"}
    assert "lower tagger.threshold" in caught.value.problems[0].remedy


def test_a_pinned_model_is_the_only_one_that_is_taken(site: Site) -> None:
    import hashlib

    right = hashlib.sha256((site.root / "tagger" / "model.onnx").read_bytes()).hexdigest()
    before = site.captions()
    site.recipe["tagger"]["sha256"] = right
    assert site.captions() == before
    site.recipe["tagger"]["sha256"] = wrong = "0123456789abcdef" * 4
    with pytest.raises(InputError) as caught:
        site.captions()
    (problem,) = caught.value.problems
    assert problem.where.endswith("tagger/model.onnx")
    assert (right in problem.cause, wrong in problem.cause) == (True, True)


def test_external_data_ends_the_build(site: Site) -> None:
    made = model(4 + len(NAMES) + 1)
    onnx.external_data_helper.set_external_data(made.graph.initializer[2], location="../secret")
    (site.root / "tagger" / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match="in another file, which lorac does not open"):
        site.captions()


@pytest.mark.parametrize("gone", ["model.onnx", "selected_tags.csv"])
def test_a_folder_without_a_tagger_is_named(site: Site, gone: str) -> None:
    (site.root / "tagger" / gone).unlink()
    with pytest.raises(InputError, match=f"tagger/{gone}: the tagger's file cannot be read"):
        site.captions()


def test_bytes_that_the_store_lost_are_made_again(site: Site) -> None:
    before = site.captions()
    store = Store(site.root / "store")
    table_of = digest((site.root / "tagger" / "selected_tags.csv").read_bytes())
    node = lower(load([site.save()])).part(lambda node: node.kind == "tag")
    results = make(node, KINDS, SCANNERS, store, lambda event: None, jobs=1)
    column = next(result.column("probabilities", store) for of, result in results.items() if of.kind == "tag")
    for lost in (table_of, column[0]):
        assert store.read(lost)
        store.ledger.drop_blob(lost)
    again = make(node, KINDS, SCANNERS, store, lambda event: None, jobs=1)
    assert again == results
    assert store.read(table_of)
    assert store.read(column[0])
    store.close()
    assert site.captions() == before


def test_why_names_the_tagger(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.root)
    site.captions()
    (site.root / "tagger" / "selected_tags.csv").write_text(table(NAMES, ["another"]), encoding="utf-8")
    lines = lorac("why", "r.toml", "--store", "store").stdout.splitlines()
    told = {" ".join(line.split()) for line in lines}
    assert "vocabulary changed the file changed" in told
    assert "tag[pictures] 3 of 3 to make vocabulary changed" in told


def test_without_a_tagger_the_graph_knows_nothing_of_it(site: Site) -> None:
    del site.recipe["tagger"]
    nodes = lower(load([site.save()])).nodes
    assert {node.kind for node in nodes} & {"tag", "tagger", "vocabulary"} == set()
    (caption,) = (node for node in nodes if node.kind == "caption")
    assert caption.inputs.keys() == {"caption"}
    assert caption.params.keys() == {"trigger", "exclude", "replace", "prefix", "suffix", "fallback"}
    assert caption.hints.keys() == {"extension"}


# -- lorac tag -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(site.root)
    site.save()
    return site


def tag(*arguments: object, code: int = 0) -> list[str]:
    done = lorac("tag", "r.toml", *arguments)
    assert done.exit_code == code, done.output
    return done.stdout.splitlines()


def texts(folder: str = "pictures") -> Mapping[str, bytes]:
    return {path.stem: path.read_bytes() for path in Path(folder).glob("*.txt")}


def test_texts_are_written_beside_the_pictures(here: Site) -> None:
    here.text("ß ü").write_text("mine", encoding="utf-8")
    lines = tag()
    assert lines[0] == "r"
    assert lines[1:4] == [
        "  kept     pictures/ß ü.png  mine",
        f"  written  pictures/絵 0.png  {', '.join(seen(COLOURS['絵 0']))}",
        f"  written  pictures/絵 1.png  {', '.join(seen(COLOURS['絵 1']))}",
    ]
    assert lines[4:] == ["1 kept, 2 written"]
    wanted = {stem: f"{', '.join(seen(COLOURS[stem]))}\n".encode() for stem in ("絵 0", "絵 1")}
    assert texts() == {"ß ü": b"mine", **wanted}
    assert tag()[-1] == "3 kept"


def test_triggers_and_rules_stay_in_the_recipe(here: Site) -> None:
    tags = seen(COLOURS["絵 0"])
    here.recipe["caption"] = {"exclude": [tags[0]], "replace": {tags[1]: "changed"}}
    here.save()
    tag()
    assert texts()["絵 0"].decode().strip() == ", ".join(tags)
    assert here.captions()["絵 0"] == ["izumi riho", "changed", *tags[2:]]


def test_a_dry_run_writes_nothing_and_a_later_build_finds_it(here: Site) -> None:
    assert tag("-n", "--store", "store")[-1] == "3 seen"
    assert texts() == {}
    here.captions()
    assert here.ran == {"caption": 3}


def test_overwrite_replaces_what_is_there(here: Site) -> None:
    for stem in COLOURS:
        here.text(stem).write_text("mine", encoding="utf-8")
    assert tag("--overwrite", "-n")[-1] == "3 seen"
    assert texts() == dict.fromkeys(COLOURS, b"mine")
    assert tag("--overwrite")[-1] == "3 written"
    assert texts() == {stem: f"{', '.join(seen(colour))}\n".encode() for stem, colour in COLOURS.items()}


def test_a_second_recipe_keeps_what_the_first_has_written(here: Site) -> None:
    (here.root / "s.toml").write_text(toml(here.recipe | {"tagger": {"model": "tagger", "threshold": 0.8}}), "utf-8")
    lines = tag("s.toml")
    assert lines[-1] == "3 kept, 3 written"
    assert lines[lines.index("s") + 1 :][:3] == [line.replace("written", "kept   ") for line in lines[1:4]]
    assert texts() == {stem: f"{', '.join(seen(colour))}\n".encode() for stem, colour in COLOURS.items()}


def test_a_text_that_was_written_meanwhile_is_kept(here: Site) -> None:
    def listen(event: events.Event) -> None:
        if isinstance(event, events.NodeFinished):
            here.text("絵 1").write_text("mine", encoding="utf-8")

    store = Store(here.root / "store")
    try:
        found = tagging.folders(load([Path("r.toml")]), store, listen, jobs=1, overwrite=False)
        assert list(tagging.lines(found, dry_run=False))[-1] == "1 kept, 2 written"
    finally:
        store.close()
    assert texts()["絵 1"] == b"mine"


def test_the_extension_of_the_recipe_is_used(here: Site) -> None:
    here.recipe["caption"] = {"extension": ".caption"}
    here.save()
    tag()
    assert texts() == {}
    assert len(list(Path("pictures").glob("*.caption"))) == 3
    assert [picture.caption_path is None for picture in pictures(here.root / "pictures", ".caption")] == [False] * 3


def test_rules_that_met_nothing_are_reported(here: Site) -> None:
    met = seen(COLOURS["絵 0"])[0].replace(" ", "_")
    here.recipe["caption"] = {"exclude": [met, "long_hairs", "hand written"], "replace": {"tag z": "x"}}
    here.text("ß ü").write_text("hand_written", encoding="utf-8")
    here.save()
    assert [line for line in tag() if "met no tag" in line] == [
        'r.toml:5: exclude "long_hairs" met no tag in any picture',
        'r.toml:6: replace "tag z" met no tag in any picture',
    ]


def test_nothing_is_written_for_a_picture_in_which_nothing_is_seen(here: Site) -> None:
    assert tag("--set", "tagger.threshold=1.0")[1:] == [f"  nothing  pictures/{s}.png" for s in sorted(COLOURS)] + [
        "3 nothing"
    ]
    assert texts() == {}


def test_problems_end_with_2_and_write_nothing(here: Site) -> None:
    here.text("ß ü").write_bytes("mine".encode("utf-16"))
    assert "UTF-16" in refused("tag", "r.toml")[0]
    assert texts().keys() == {"ß ü"}
    here.text("ß ü").unlink()
    (here.root / "pictures" / "bad.png").write_bytes(b"bad")
    assert refused("tag", "r.toml")[0].startswith("pictures/bad.png: ")
    del here.recipe["tagger"]
    here.save()
    assert refused("tag", "r.toml") == [
        'r.toml: the recipe has no tagger; add [tagger] with model = "builtin:mini" or the folder of another, '
        "or --set tagger.model=…"
    ]


def test_other_verbs_say_that_only_the_tagger_knows(here: Site) -> None:
    here.text("絵 0").write_text("1girl, smile", encoding="utf-8")
    lines = lorac("captions", "r.toml").stdout.splitlines()
    assert lines[1] == "    ?  pictures/ß ü.png  izumi riho, (tagged when built)"
    assert lines[2].endswith("  pictures/絵 0.png  izumi riho, 1girl, smile")
    here.recipe["caption"] = {"exclude": ["smiles"]}
    here.save()
    assert "L001" not in lorac("check", "r.toml").stdout, "another picture may be tagged smiles"
    for stem in COLOURS:
        here.text(stem).write_text("1girl, smile", encoding="utf-8")
    assert "L001" in lorac("check", "r.toml").stdout


def test_the_embedded_tagger_end_to_end(here: Site) -> None:
    """Dolls in, texts beside them, and a build that trains on the tagger's words."""
    folder = here.root / "人形"
    folder.mkdir()
    for number in (0, 2):
        doll = world.sample(5, number)
        world.draw(doll, number).save(folder / f"人物 {number}.png")
    here.recipe |= {"source": [{"path": "人形"}], "tagger": {"model": "builtin:mini"}}
    here.save()
    done = lorac("build", "r.toml", "--store", "store")
    assert done.exit_code == 0, done.output
    facts = json.loads(Path("build/r/build.json").read_text("utf-8"))
    assert facts["kinds"]["tag"]["runs"] == 2
    assert tag("--store", "store")[-1] == "2 written"
    for number in (0, 2):
        text = (folder / f"人物 {number}.txt").read_text("utf-8").strip().split(", ")
        doll = world.sample(5, number)
        assert {f"{doll.hair_colour} hair", doll.hair_style, "1girl"} <= set(text)
