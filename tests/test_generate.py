"""Generated pictures: they stand where a folder's pictures stand, and are shared, kept and captioned like those."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorac import sheet
from lorac.engine import events
from lorac.engine.build import make
from lorac.engine.resolve import Result
from lorac.errors import InputError, Interrupted
from lorac.graph.lower import lower
from lorac.graph.nodes import Node
from lorac.kinds.registry import KINDS, SCANNERS
from lorac.recipe.load import load
from lorac.store.blobs import Store
from tests.recipes import toml
from tests.running import lorac
from tests.tiny import draw_pictures

DRAW = {"count": 3, "prompt": "1girl, smile", "steps": 2, "cfg_scale": 2.0}
TRANSPARENT = {"count": 3, "transparent": True}


class Site:
    """A folder with recipes on the tiny base. `ran`: how many items of each node the last `make` made."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base, self.store = folder, base, Store(folder / ".lorac")
        self.ran: Counter[str] = Counter()
        self.progress: list[events.NodeProgress] = []
        self.stop_at = 0
        self.winding_down = threading.Event()
        draw_pictures(folder / "pictures", 2)

    def write(self, *regularisation: Mapping[str, Any], name: str = "r", **sections: Mapping[str, Any]) -> Path:
        recipe: dict[str, Any] = {
            "source": [{"path": "pictures"}],
            "regularisation": list(regularisation),
            "network": {"dim": 2},
            "train": {"base": str(self.base), "steps": 2},
        }
        path = self.folder / f"{name}.toml"
        path.write_text(toml({**recipe, **sections}), encoding="utf-8")
        return path

    def make(self, *paths: Path, kinds: tuple[str, ...] = ("latent", "tokens")) -> dict[str, Result]:
        self.ran, self.progress = Counter(), []
        graph = lower(load(paths)).part(lambda node: node.kind in kinds)
        results: Mapping[Node, Result] = make(graph, KINDS, SCANNERS, self.store, self._listen, jobs=2)
        return {name: result for node, result in results.items() for name in graph.names[node]}

    def _listen(self, event: events.Event) -> None:
        if isinstance(event, events.NodeFinished) and event.ran:
            self.ran[event.node.partition(":")[2]] += event.ran
        if isinstance(event, events.Warned) and event.text.startswith("interrupted"):
            self.winding_down.set()
        if isinstance(event, events.NodeProgress):
            self.progress.append(event)
            if event.kind == "generate" and event.done == self.stop_at:
                raise KeyboardInterrupt

    def column(self, result: Result, output: str) -> list[bytes]:
        return [self.store.read(digest) for digest in result.column(output, self.store)]


@pytest.fixture
def site(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path, tiny_base)


def test_as_many_pictures_as_wanted_each_another_one(site: Site) -> None:
    made = site.make(site.write({"generate": DRAW}))
    pictures = site.column(made["r:generate[generated]"], "picture")
    assert len(set(pictures)) == 3
    assert {(image.size, image.mode) for image in map(opened, pictures)} == {((64, 64), "RGB")}
    assert site.column(made["r:generate[generated]"], "name") == [
        b"generated_0001",
        b"generated_0002",
        b"generated_0003",
    ]
    assert site.column(made["r:image[generated]"], "bucket") == [b"64x64"] * 3
    assert [(e.done, e.total, e.note) for e in site.progress if e.kind == "generate"] == [
        (n, 3, "pictures") for n in (1, 2, 3)
    ]
    assert {name for name, count in site.ran.items() if "generated" in name} == {
        f"{kind}[generated]" for kind in ("generate", "image", "caption", "tokens", "latent")
    }


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_the_caption_is_the_table_s_or_else_the_prompt(site: Site) -> None:
    """Regularisation captions are trained as they are: `exclude` does not touch them."""
    path = site.write({"generate": DRAW, "caption": "1girl, solo"}, {"generate": DRAW}, caption={"exclude": ["1girl"]})
    made = site.make(path, kinds=("caption",))
    assert site.column(made["r:caption[generated]"], "caption") == [b"1girl, solo"] * 3
    assert site.column(made["r:caption[generated-3]"], "caption") == [b"1girl, smile"] * 3


def test_a_tagger_s_tags_are_the_caption_and_the_prompt_where_it_sees_nothing(site: Site) -> None:
    from lorac.recipe.tagger import MODEL, TAGS, tagger_folder
    from lorac.tagger.model import Tagger
    from lorac.tagger.vocabulary import Thresholds, caption, read_tags

    low, high = 0.02, 1.0
    folder = tagger_folder("builtin:mini")
    tags = read_tags((folder / TAGS).read_bytes(), "tags")
    tagger = Tagger(folder / MODEL, (folder / MODEL).read_bytes(), len(tags))
    tables = ({"generate": DRAW}, {"generate": TRANSPARENT, "alpha": "white"})

    def captions(threshold: float) -> tuple[list[str], list[str], list[bytes]]:
        settings = {"model": "builtin:mini", "threshold": threshold, "character_threshold": threshold}
        made = site.make(site.write(*tables, tagger=settings), kinds=("caption",))
        found = [
            [text.decode() for text in site.column(made[f"r:caption[{label}]"], "caption")]
            for label in ("generated", "transparent")
        ]
        return found[0], found[1], site.column(made["r:generate[generated]"], "picture")

    drawn, empty, pictures = captions(low)
    expected = [caption(tags, tagger.probabilities(opened(data)), Thresholds(low, low)) for data in pictures]
    assert drawn == expected and all(expected)
    assert empty == ["1girl"] * 3
    assert captions(high)[:2] == (["1girl, smile"] * 3, ["1girl"] * 3)


def test_recipes_share_pictures_and_a_larger_count_draws_what_is_new(site: Site) -> None:
    first = site.write({"generate": DRAW}, name="a")
    other = site.write({"generate": DRAW, "repeats": 2, "caption": "a girl"}, name="b", network={"dim": 4})
    both = site.make(first, other)
    assert both["a:generate[generated]"] is both["b:generate[generated]"]
    assert site.ran["generate[generated]"] == 3
    more = site.make(site.write({"generate": {**DRAW, "count": 5}}, name="c"))
    assert site.ran["generate[generated]"] == site.ran["latent[generated]"] == 2
    few, many = (
        site.column(found, "picture") for found in (both["a:generate[generated]"], more["c:generate[generated]"])
    )
    assert many[:3] == few


def test_a_changed_prompt_makes_again_what_follows_and_nothing_else(site: Site) -> None:
    site.make(site.write({"generate": DRAW}))
    site.make(site.write({"generate": {**DRAW, "prompt": "1boy"}}))
    assert site.ran == {
        **dict.fromkeys([f"{kind}[generated]" for kind in ("generate", "image", "latent")], 3),
        **dict.fromkeys(["caption[generated]", "tokens[generated]"], 1),
    }
    site.make(site.write({"generate": {**DRAW, "prompt": "1boy"}, "caption": "a boy"}))
    assert site.ran == {"caption[generated]": 1, "tokens[generated]": 1}
    site.make(site.write({"generate": DRAW}))
    assert not site.ran


def test_tables_that_differ_have_names_of_their_own(site: Site) -> None:
    made = site.make(site.write({"generate": DRAW}, {"generate": {**DRAW, "seed": 7}}))
    first, second = (site.column(made[f"r:generate[{label}]"], "picture") for label in ("generated", "generated-3"))
    assert not set(first) & set(second)


def test_a_build_that_was_stopped_goes_on_with_the_next_picture(
    site: Site, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.write({"generate": {**DRAW, "count": 12}})
    site.stop_at = 3
    _sixth_waits_for(site.winding_down, monkeypatch)
    with pytest.raises(Interrupted):
        site.make(path)
    site.stop_at = 0
    made = site.make(path)
    assert 0 < site.ran["generate[generated]"] <= 9
    (tmp_path / "clean").mkdir()
    clean = Site(tmp_path / "clean", tiny_base)
    expected = clean.make(path)
    name = "r:generate[generated]"
    assert made[name].column("picture", site.store) == expected[name].column("picture", clean.store)


def _sixth_waits_for(event: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a quick worker may have drawn all before it hears that it is to stop."""
    numbers, png = count(1), sheet.png

    def late(picture: Image.Image) -> bytes:
        assert next(numbers) < 6 or event.wait(60)
        return png(picture)

    monkeypatch.setattr(sheet, "png", late)


def test_transparent_pictures_train_as_a_folder_of_them_does(site: Site) -> None:
    """Equal pictures are encoded once, and the LoRA is the same."""
    from safetensors.torch import load_file

    count = 20
    for number in range(count):
        (site.folder / "empty").mkdir(exist_ok=True)
        Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(site.folder / "empty" / f"{number:02}.png")
    drawn = site.write({"generate": {**TRANSPARENT, "count": count}, "alpha": "white"}, name="drawn")
    found = site.write({"path": "empty", "alpha": "white", "caption": "1girl"}, name="found")
    made = site.make(drawn)
    assert {opened(data).getextrema() for data in site.column(made["drawn:generate[transparent]"], "picture")} == {
        ((0, 0),) * 4
    }
    once = {f"{kind}[transparent]": 1 for kind in ("image", "latent", "caption", "tokens")}
    assert once.items() <= site.ran.items()
    site.store.close()
    assert lorac("build", drawn, found).exit_code == 0
    one, other = (load_file(f"build/{name}/{name}.safetensors") for name in ("drawn", "found"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_what_looks_without_building_knows_them(site: Site) -> None:
    path = site.write({"generate": {**DRAW, "count": 9}}, {"generate": TRANSPARENT, "alpha": "white"})
    site.store.close()
    plan = lorac("plan", path).output
    assert '  regularisation  generated: 9 pictures that the base draws of "1girl, smile"\n' in plan
    assert "  regularisation  transparent: 3 pictures\n" in plan
    assert "64x64 (2)" in plan or "64x64 (4)" in plan, plan
    captions = lorac("captions", path).output.splitlines()
    assert [line.split(maxsplit=1)[1] for line in captions[3:]] == [
        "generated/9 pictures  1girl, smile",
        "transparent/3 pictures  1girl",
    ]
    tagged = lorac("captions", path, "--set", "tagger.model=builtin:mini").output.splitlines()
    assert [line.split(maxsplit=1)[1] for line in tagged[3:]] == [
        "generated/9 pictures  (tagged when built)",
        "transparent/3 pictures  1girl",
    ]
    check = lorac("check", path)
    assert "L029 none of 3 pictures of transparent are shown" in check.output
    assert "L013" not in check.output and "L008" not in check.output  # nobody opened what is no file
    graph = lorac("graph", path).output
    assert "generate[generated]" in graph and "generate[transparent]" in graph
    assert "  generate[generated]" in lorac("build", "-n", path).output
    tag = lorac("tag", path, "--set", "tagger.model=builtin:mini")
    assert tag.exit_code == 0 and "generated" not in tag.output and not (site.folder / "generated").exists()


def test_why_names_pictures_by_their_numbers(site: Site) -> None:
    site.store.close()
    assert lorac("build", site.write({"generate": {**TRANSPARENT, "count": 2}, "alpha": "white"})).exit_code == 0
    assert "added: picture 3\n" in lorac("why", site.write({"generate": TRANSPARENT, "alpha": "white"})).output


def test_transparent_pictures_need_a_colour_behind_them(site: Site) -> None:
    with pytest.raises(InputError, match=r"r\.toml:4: .* transparent parts .* add alpha = \"white\""):
        load([site.write({"generate": TRANSPARENT})])
