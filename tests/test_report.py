"""The report page: parsed by html.parser, its drawing compared with values worked out by hand or by plain formulas."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import struct
import subprocess
import sys
import tomllib
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_struct

from lorac.evaluate.figures import Figures
from lorac.report.markup import number
from lorac.report.page import Folder, LeftOut, Outline, Picture, Report, Row, Table, page
from lorac.report.pictures import tag_counts
from lorac.report.recipe import toml
from tests.pages import figures

ROOT = Path(__file__).parents[1]
VOID = {"meta", "link", "img", "br", "hr", "wbr"}


def png(width: int, height: int, shade: int = 0) -> bytes:
    """A grey picture, written after the PNG specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([shade]) * width) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Document(HTMLParser):
    """Elements, texts and attributes of a page; fails where an element is not closed in its parent."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html.decode("utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert self.open.count("svg"), f"<{tag}/> closes itself in SVG only"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for element, attrs in self.elements if element == tag and name in attrs]

    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attrs)) for tag, attrs in self.elements]

    def text_of(self, tag: str) -> list[str]:
        return [text for parent, text in self.texts if parent == tag]


def hostile_figures(word: str) -> Figures:
    """Figures with `word` wherever a user's text stands."""
    plain = figures()
    leaked = tuple(replace_struct(one, tag=f"{one.tag} {word}") for one in plain.overall[1].leaked)
    return replace_struct(
        plain,
        identity=(f"hair {word}",),
        prompts=tuple(replace_struct(p, prompt=f"{p.prompt} {word}", negative=word) for p in plain.prompts),
        overall=tuple(replace_struct(one, leaked=leaked) for one in plain.overall),
        cells=tuple(replace_struct(one, leaked=leaked) for one in plain.cells),
    )


def report(word: str = "word", **changes: Any) -> Report:
    """A report with every part; `word` stands in each of its texts."""
    pictures = [
        Picture("set", f"{word} 1.png", f"{word}, smile, hat", (word, "smile", "hat"), 128, 96, png(8, 6, 10)),
        Picture("set", f"{word} 2.png", f"{word}, hat", (word, "hat"), 128, 128, png(8, 8, 20)),
        Picture(f"reg {word}", "3.png", f"1girl {word}", (), 128, 128, png(8, 8, 30), regularisation=True),
    ]
    whole = Report(
        name=f"riho {word}",
        recipe_file=f"recipes/{word}.toml",
        comment=f"comment {word}",
        recipe=[Table("[train]", {f"seed {word}": 23, "base": f"a {word}"}), Table("[network]", {"dim": 128})],
        folders=[Folder("set", 36, False, 2), Folder(f"reg {word}", 1, True, 1)],
        pictures=pictures,
        left_out=[LeftOut(f"out {word}", 2), LeftOut("old", 1, f"new {word}")],
        rows=[
            Row(f"1girl {word}", f"lowres {word}", [png(8, 8, shade) for shade in (40, 41, 42, 43)]),
            Row(f"solo {word}", "blurry", [png(8, 8, shade) for shade in (50, 51, 52, 53)]),
        ],
        strengths=[0.0, 0.5, 0.7, 1.0],
        figures=hostile_figures(word),
        outline=Outline({"source": (), f"image {word}": ("source",)}, {"source": 3}),
        losses=[0.4, 0.1, 0.2, 0.3],
        unet_lr=[1e-4, 5e-5, 2.5e-5, 0.0],
        text_lr=[5e-5, 5e-5, 2.5e-5, 0.0],
        epoch_ends=[2, 4],
        regularisation_steps=[False, True, False, True],
        summary={f"steps {word}": 2808, "rate": 0.5},
    )
    return replace(whole, **changes)


def test_page_is_well_formed_and_its_ids_are_unique() -> None:
    document = Document(page(report()))
    ids = [attrs["id"] for _, attrs in document.elements if "id" in attrs]
    assert ids == ["samples", "evaluation", "training", "pictures", "graph", "arrow", "recipe"]
    links = document.attributes("a", "href")
    assert links == [*(f"#{name}" for name in ids if name != "arrow"), "build.html", "build.html"]


def test_page_needs_nothing_else() -> None:
    html = page(report()).decode()
    document = Document(html.encode())
    tags = {tag for tag, _ in document.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"https?:|url\((?!#arrow)|@import|file:", html)
    assert all(source.startswith("data:") for source in document.attributes("img", "src"))
    assert [href for href in document.attributes("link", "href") if href != "data:,"] == []
    assert "default-src 'none'" in html


def test_pictures_are_embedded_unchanged_and_described() -> None:
    whole = report()
    document = Document(page(whole))
    sources = document.attributes("img", "src")
    found = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    shown = [first for row in whole.rows for first in row.firsts]
    assert found == shown + [picture.image for picture in whole.pictures]
    assert all(document.attributes("img", "alt"))
    assert len(document.attributes("img", "alt")) == len(sources)
    sizes = list(zip(document.attributes("img", "width"), document.attributes("img", "height"), strict=True))
    assert sizes == [("8", "8")] * 8 + [("8", "6"), ("8", "8"), ("8", "8")]


@pytest.mark.parametrize(
    "hostile",
    [
        "</style></script><script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "--><!-- <![CDATA[ ]]> &lt; &amp;amp; &#0;",
        "{0} %s {name} \\",
    ],
)
def test_hostile_texts_are_inert(hostile: str) -> None:
    """They stand on the page as they are, and the page has the very same elements and attributes as without them."""
    document = Document(page(report(hostile)))
    assert document.structure() == Document(page(report())).structure()
    texts = "\n".join(text for _, text in document.texts)
    for shown in (
        "riho",
        "comment",
        "1girl",
        "solo",
        "Negative prompt: lowres",
        "steps",
        "reg",
        "hair",
        "out",
        "image",
    ):
        assert f"{shown} {hostile}" in texts
    assert f"{hostile} 1.png" in texts
    assert f"old → new {hostile}" in texts and f"white background {hostile}" in texts
    assert f"seed {json.dumps(hostile)[1:-1]}" in texts.replace('"seed', "seed") and json.dumps(f"a {hostile}") in texts
    assert f"recipes/{hostile}.toml" in texts or hostile.rpartition("/")[2] + ".toml" in texts
    assert any(hostile in alt for alt in document.attributes("img", "alt"))


def test_unprintable_characters_are_replaced() -> None:
    html = page(report("a\udcff\x00\x1b\u202eb\tc")).decode("utf-8")
    assert "a\ufffd\ufffd\ufffd\ufffdb\tc" in html
    assert not re.search("[\x00\x1b\u202e]", html)


def test_bytes_do_not_depend_on_the_process_and_no_heavy_module_is_loaded() -> None:
    code = (
        "import sys, hashlib\nfrom tests.test_report import page, report\n"
        "print(hashlib.sha256(page(report())).hexdigest())"
    )
    light = "import sys, lorac.report.page\nprint({'torch', 'numpy', 'PIL'} & set(sys.modules))"

    def output(program: str, hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    expected = hashlib.sha256(page(report())).hexdigest()
    assert [output(code, seed) for seed in ("1", "2")] == [expected, expected]
    assert output(light, "0") == "set()"


def test_no_absolute_path_is_shown() -> None:
    whole = report(
        recipe_file="/home/me/recipes/riho.toml",
        recipe=[
            Table("[train]", {"base": "/home/me/nai.safetensors", "other": ["C:\\Users\\me\\b.ckpt"], "split": "a/b"})
        ],
    )
    html = page(whole).decode()
    assert not re.search(r"/home|Users", html)
    lines = [text for text in Document(html.encode()).text_of("span") if text.startswith("=")]
    assert lines == ['= "nai.safetensors"', '= ["b.ckpt"]', '= "a/b"']


def test_samples_have_a_column_for_each_strength_and_a_group_of_rows_for_each_prompt() -> None:
    whole = report(pictures=[], losses=[], recipe=[], figures=None, outline=None)
    document = Document(page(whole))
    tags = [tag for tag, _ in document.elements]
    assert [text for text in document.text_of("th") if text in ("off", "0.5", "0.7", "1.0")] == [
        "off",
        "0.5",
        "0.7",
        "1.0",
    ]
    assert tags.count("tbody") == 2
    assert document.attributes("th", "colspan") == ["4", "4"]
    assert document.attributes("table", "style") == ["--columns:4;max-width:64px"]
    names = ["LoRA off", "strength 0.5", "strength 0.7", "strength 1.0"]
    assert document.attributes("img", "alt") == [
        f"{prompt} word; {name}" for prompt in ("1girl", "solo") for name in names
    ]


def test_a_negative_prompt_of_all_rows_stands_there_once() -> None:
    same = [Row(prompt, "lowres", [png(8, 8)] * 4) for prompt in ("a", "b", "c")]
    assert page(report(rows=same, figures=None)).count(b"Negative prompt: lowres") == 1


def test_loss_chart_coordinates() -> None:
    """Losses 0.4, 0.1, 0.2, 0.3 on axes of 4 steps and values to 0.4, in units of 1000, y downwards."""
    document = Document(page(report(figures=None)))
    raw, training, regularisation, unet, text_encoder = document.attributes("polyline", "points")
    assert raw == "250,0 500,750 750,500 1000,250"
    # Width 1 for two points: each is weighted 1, the other exp(-1).
    near, far = 1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1))
    for points, (first, second), steps in ((training, (0.4, 0.2), (1, 3)), (regularisation, (0.1, 0.3), (2, 4))):
        values = (near * first + far * second, near * second + far * first)
        expected = " ".join(f"{250 * s},{1000 * (1 - v / 0.4):.1f}" for s, v in zip(steps, values, strict=True))
        assert points == expected
    assert unet == "250,0 500,500 750,750 1000,1000"
    assert text_encoder == "250,500 500,500 750,750 1000,1000"
    marks = [attrs for tag, attrs in document.elements if tag == "line" and attrs["class"] == "mark"]
    assert [(mark["x1"], mark["x2"]) for mark in marks] == [("500", "500"), ("1000", "1000")]
    grid = [attrs["y1"] for tag, attrs in document.elements if tag == "line" and attrs["class"] == "grid"]
    assert grid == ["1000", "750", "500", "250", "0", "1000", "800", "600", "400", "200", "0"]


def test_chart_labels() -> None:
    document = Document(page(report(figures=None, outline=None)))
    steps = ["0", "1", "2", "3", "4", "step"]
    assert document.text_of("text") == [
        *("0", "0.1", "0.2", "0.3", "0.4", *steps, "2", "4"),
        *("0", "2e-5", "4e-5", "6e-5", "8e-5", "1e-4", *steps),
    ]
    assert any(
        "Means: training pictures 0.3; regularisation pictures 0.2" in a
        for a in document.attributes("svg", "aria-label")
    )


def test_mean_losses_of_the_two_kinds_are_apart() -> None:
    kinds = [step % 2 == 1 for step in range(40)]
    losses = [0.5 if kind else step / 100 for step, kind in enumerate(kinds)]
    cells = Document(page(report(losses=losses, regularisation_steps=kinds, figures=None))).text_of("td")
    # Training steps 0, 2, … 38: the first tenth is (0, 0.02), the last (0.36, 0.38).
    assert cells[:8] == ["20", "0.0100", "0.3700", "0.1900", "20", "0.5000", "0.5000", "0.5000"]


def test_a_loss_that_is_no_number_is_left_out() -> None:
    document = Document(page(report(losses=[0.4, math.nan, math.inf, 0.2], regularisation_steps=(), figures=None)))
    assert document.attributes("polyline", "points")[0] == "250,0 1000,500"
    assert document.text_of("td")[3] == "0.3000"


def test_tags_are_counted_once_a_picture_and_only_of_training_pictures() -> None:
    tags = [("b", "a", "b"), ("a", "c"), (), ("a",)]
    assert tag_counts([Picture("", "", "", own, 1, 1, b"") for own in tags]) == [("a", 3), ("b", 1), ("c", 1)]
    document = Document(page(report(rows=[])))
    widths = [attrs["style"] for tag, attrs in document.elements if tag == "span" and attrs.get("class") == "bar"]
    assert widths == ["width:100%", "width:100%", "width:50%", "width:100%", "width:50%"]  # two were left out
    assert "1girl word" not in document.text_of("th")


def test_tags_of_every_picture_are_grey() -> None:
    document = Document(page(report()))
    shared = [
        text for (parent, text) in document.texts if parent == "span" and text.rstrip(",") in ("word", "smile", "hat")
    ]
    assert shared == ["word,", "hat", "word,", "hat"]
    assert "smile," in document.text_of("p")


def test_regularisation_pictures_are_folded_and_at_most_sixty() -> None:
    many = [Picture("reg", f"{i}.png", "1girl", (), 8, 8, png(8, 8), regularisation=True) for i in range(70)]
    document = Document(page(report(pictures=many, folders=[Folder("reg", 1, True, 400)], rows=[], figures=None)))
    assert document.attributes("img", "alt") == [f"{i}.png" for i in range(60)]
    assert [attrs for tag, attrs in document.elements if tag == "details"] == [{}]
    assert "400 regularisation pictures from" in document.text_of("summary")
    assert "… and 340 more." in document.text_of("p")


def test_of_many_pictures_two_hundred_are_shown_and_all_are_counted() -> None:
    shown = [Picture("many", f"{i}.png", "1girl, hat", ("1girl", "hat"), 8, 8, png(8, 8)) for i in range(200)]
    rest = [Picture("many", f"{i}.png", "1girl, shoes", ("1girl", "shoes"), 0, 0, b"") for i in range(200, 1250)]
    folders = [Folder("many", 1, False, 1250)]
    document = Document(page(report(pictures=[*shown, *rest], folders=folders, rows=[], figures=None, left_out=[])))
    assert document.attributes("img", "alt") == [f"{i}.png" for i in range(200)]
    assert "… and 1,050 more." in document.text_of("p")
    counts = [text for parent, text in document.texts if parent == "span" and text.replace(",", "").isdigit()]
    assert counts == ["1,250", "1,050", "200"]


def test_a_recipe_leaves_out_what_has_no_value_and_is_grey_where_it_has_its_default() -> None:
    tables = [Table("[sample]", {"width": None, "seed": 23, "negative": ""}, frozenset({"negative"})), Table("[x]", {})]
    document = Document(page(report(recipe=tables, rows=[], pictures=[], losses=[], figures=None, outline=None)))
    assert document.text_of("b") == ["[sample]"]
    assert [text for text in document.text_of("span") if text in ("seed", "negative", "width")] == ["seed", "negative"]
    assert document.attributes("span", "class") == ["key", "default", "key"]


VALUES: list[Any] = [
    *(
        True,
        False,
        0,
        23,
        -1,
        1e-4,
        5e-5,
        128.0,
        1e-12,
        1e22,
        "",
        "a",
        'quo"te',
        "back\\slash",
        "two\nlines",
        "\x00\x7f\t",
    ),
    *([], ["a"], ["a, b", "c"], [1, 2.5], {"old": "new", "x y": ""}, [{"prompt": "a", "negative": "b"}], "絵 ≤ 🙂"),
    [f"a rather long tag {number}" for number in range(20)],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_toml(value: object) -> None:
    assert tomllib.loads(f"key = {toml(value)}") == {"key": value}


def test_the_recipe_can_be_copied() -> None:
    """What stands on the page is TOML and says what the tables say."""
    values = {"a key": [f"tag {number}" for number in range(40)], "lr": 5e-5, "none": None}
    tables = [Table("[[source]]", {"path": "a"}), Table("[[source]]", {"path": "b"}), Table("[train]", values)]
    html = page(report(recipe=tables)).decode()
    blocks = re.findall("<pre[^>]*>(.*?)</pre>", html, re.DOTALL)
    written = unescape("\n".join(re.sub("<[^>]+>", "", block) for block in blocks))
    del values["none"]
    assert tomllib.loads(written) == {"source": [{"path": "a"}, {"path": "b"}], "train": values}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2808, "2,808"), (0, "0"), (3.0, "3"), (0.5, "0.5"), (1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.123456, "0.1235")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_least_report_is_a_page() -> None:
    document = Document(page(Report("riho", "riho.toml")))
    assert document.text_of("h1") == ["riho"]
    assert not {tag for tag, _ in document.elements} & {"section", "nav", "dl"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [Row("a", "", [b"GIF89a"] * 4)]}, "neither a PNG"),
        ({"rows": [Row("a", "", [png(8, 8)])]}, "shorter"),
        ({"strengths": []}, "without strengths"),
        ({"regularisation_steps": [True]}, "shorter"),
    ],
)
def test_reports_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(report(**changes))
