"""The comparison page: who is on it, what of each recipe, and what where something is missing."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from lorac.evaluate.figures import encode
from lorac.kinds import compare
from lorac.report.compare import Column, Shown, compare_page, flattened
from lorac.report.measures import SHOWN
from tests.one_item import of_blobs
from tests.pages import PROMPTS, RUNS, columns, figures, losses
from tests.test_report import Document, png


@pytest.fixture(scope="module")
def eleven() -> str:
    return compare_page("The article", "", columns()).decode()


def section(html: str, name: str) -> str:
    return html[html.index(f'<section id="{name}">') :].partition("</section>")[0]


def test_it_needs_nothing_else_and_is_not_too_big(eleven: str) -> None:
    document = Document(eleven.encode())
    assert not {tag for tag, _ in document.elements} & {"script", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"https?:|url\(|@import|file:", eleven)
    assert len(eleven) < 10_000_000
    assert compare_page("The article", "", columns()).decode() == eleven


def test_every_recipe_is_named_and_linked(eleven: str) -> None:
    links = re.findall(r'<a href="\.\./([^"]+)/report\.html">([^<]+)</a>', section(eleven, "recipes"))
    assert links == [(name, name) for name, *_ in RUNS]
    assert "diverged: its loss is no number from step 901 on" in section(eleven, "recipes")


def test_a_panel_for_each_measure_has_a_line_for_each_recipe_that_was_evaluated(eleven: str) -> None:
    panels = re.findall(r'<table class="lane">.*?</table>', section(eleven, "figures"), re.DOTALL)
    assert len(panels) == len(SHOWN)
    evaluated = [column for column in columns() if column.figures]
    for name, panel in zip(SHOWN, panels, strict=True):
        lanes = panel.split("<tr>")[1:]
        assert [re.findall('"row">([^<]+)<', lane)[0] for lane in lanes] == [column.name for column in evaluated]
        for lane, column in zip(lanes, evaluated, strict=True):
            strengths = dict.fromkeys((column.preferred, 1.0))
            wanted = [one.value for at in strengths if (one := column.overall(at)[name])]
            assert [float(x) / 100 for x in re.findall(r'cx="([\d.]+)%"', lane)] == pytest.approx(wanted, abs=6e-4)
            assert lane.count(" ring") == (column.preferred != 1.0)


def test_prompts_stand_together_and_the_picture_without_a_lora_stands_once() -> None:
    off = {name: png(8, 8, shade) for shade, name in enumerate(("a", "b", "only"))}
    shown = {
        name: Shown(name, "", data, {0.5: png(8, 8, 90 + i), 1.0: png(8, 8, 99)})
        for i, (name, data) in enumerate(off.items())
    }
    made = [
        Column("one", prompts=[shown["a"], shown["b"]]),
        Column("two", prompts=[shown["b"], shown["only"], shown["a"]]),
    ]
    html = section(compare_page("t", "", made).decode(), "pictures")
    groups = re.split("<h3", html)[1:]
    assert [re.findall('dir="auto">([^<]+)', group)[0] for group in groups] == ["a", "b"]
    for name, group in zip("ab", groups, strict=True):
        pictures = [base64.b64decode(data) for data in re.findall('base64,([^"]+)', group)]
        assert pictures == [off[name], *shown[name].at.values(), *shown[name].at.values()]
    assert "1 prompt of one recipe alone" in html


def test_only_settings_that_differ_are_shown() -> None:
    long = [f"tag {number}" for number in range(9)]
    made = [
        Column("one", settings={"network.alpha": 128.0, "train.seed": 23, "caption.exclude": long, "only.one": 1}),
        Column("two", settings={"network.alpha": 1.0, "train.seed": 23, "caption.exclude": [*long, "more"]}),
        Column("three", settings={"network.alpha": 1.0, "train.seed": 23, "caption.exclude": long}),
    ]
    html = section(compare_page("t", "", made).decode(), "settings")
    document = Document(html.partition("<h2>")[2].partition("</h2>")[2].encode())
    assert "seed" not in html
    assert document.text_of("td") == ["128.0", "1", "1.0", "–", "1.0", "–"]
    assert document.text_of("dt") == ["one, three", "two"]
    assert "tag 8" in document.text_of("pre")[0] and "more" in document.text_of("pre")[1]


def test_recipes_that_are_alike_have_no_settings_to_show() -> None:
    assert (
        'id="settings"'
        not in compare_page("t", "", [Column("a", settings={"x": 1}), Column("b", settings={"x": 1})]).decode()
    )


def test_curves_have_one_scale_that_a_diverged_one_does_not_set(eleven: str) -> None:
    html = section(eleven, "loss")
    curves = re.findall(r'<polyline id="loss(\d+)" vector-effect="non-scaling-stroke" points="([^"]+)"', html)
    assert [int(number) for number, _ in curves] == list(range(len(RUNS)))
    heights = {int(n): [int(p.partition(",")[2]) for p in points.split(" ")] for n, points in curves}
    assert min(heights[1]) < 0, "the diverged one leaves the panel"
    assert all(0 <= y <= 1000 for number, ys in heights.items() if number != 1 for y in ys)
    assert html.count('class="first"') == len(RUNS)
    assert html.count('class="raw"') == len(RUNS) * (len(RUNS) - 1)


def test_a_loss_is_drawn_at_its_height() -> None:
    """Constant curves: 0.02 and 0.04 on a scale to 0.04, over 400 steps."""
    made = [Column("half", losses=[0.02] * 200), Column("whole", losses=[0.04] * 400)]
    html = compare_page("t", "", made).decode()
    first, second = (points.split(" ") for points in re.findall(r'points="([^"]+)"', html))
    assert {point.partition(",")[2] for point in first} == {"500"}
    assert {point.partition(",")[2] for point in second} == {"0"}
    assert int(first[-1].partition(",")[0]) == pytest.approx(500, abs=5)
    assert int(second[-1].partition(",")[0]) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize("hostile", ["</style><script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "&lt;"])
def test_hostile_texts_are_inert(hostile: str) -> None:
    def made(word: str) -> bytes:
        settings: list[dict[str, Any]] = [{f"a.{word}": word, "b": [word] * 9}, {f"a.{word}": "x", "b": []}]
        shown = [Shown(word, word, png(8, 8), {1.0: png(8, 8)})]
        both = [Column(f"{word}{n}", word, settings[n], shown, losses(60), figures(n)) for n in range(2)]
        return compare_page(word, word, both)

    document, plain = Document(made(hostile)), Document(made("w" * len(hostile)))
    assert document.structure() == plain.structure()
    assert hostile in document.text_of("h1") and hostile in document.text_of("h3")


def test_recipes_of_which_there_is_nothing_are_named_all_the_same() -> None:
    html = compare_page("t", "", [Column("one"), Column("two", losses=[0.1, math.nan])]).decode()
    assert "was not built" in html and "no number from step 2 on" in html
    assert not {"figures", "pictures", "settings"} & set(re.findall('<section id="([^"]+)"', html))


def test_the_kind_takes_whatever_ports_there_are() -> None:
    """Recipe 0 has everything, recipe 1 only losses, recipe 2 nothing."""
    settings = {"network": {"alpha": 1.0}, "sample": {"prompts": [], "steps": 20}}
    folders = [{"name": "set", "repeats": 36, "regularisation": False}]
    about = {"comment": "", "settings": settings, "folders": folders, "strengths": [0.5, 1.0]}
    prompts = [{"prompt": prompt, "negative": ""} for prompt, _ in PROMPTS]
    blobs = {b"losses": array("f", [0.5, 0.25]).tobytes(), b"more": array("f", [0.125]).tobytes()}
    blobs |= {b"figures": encode(figures())} | dict(drawn())
    work = of_blobs(
        blobs,
        params={
            "title": "t",
            "recipes": [{"name": name, "prompts": prompts, **about} for name in ("all", "some", "none")],
        },
        shared={"figures.0": b"figures"},
        columns={
            "losses.0": [b"losses", b"more"],
            "losses.1": [b"losses"],
            "off.0": [f"off {n}".encode() for n in range(3)],
            "first.0": [f"first {n}".encode() for n in range(6)],
        },
    )
    (made,) = compare.run(work)
    html = made.outputs["html"].decode()  # type: ignore[union-attr]
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', section(html, "recipes"), re.DOTALL)
    assert "<td>3</td>" in rows[0] and "not evaluated" in rows[1] and "not built" in rows[2]
    pictures = section(html, "pictures")
    assert pictures.count("<img ") == 9 and pictures.count("image/webp") == 9
    assert [int(shade) for shade in shades(pictures)] == [0, 100, 110, 20, 120, 130, 40, 140, 150]


def drawn() -> Iterator[tuple[bytes, bytes]]:
    """Grey PNGs: without the LoRA 0, 20, 40; prompts by strengths 100, 110, …"""
    yield from ((f"off {n}".encode(), png(16, 16, 20 * n)) for n in range(3))
    yield from ((f"first {n}".encode(), png(16, 16, 100 + 10 * n)) for n in range(6))


def shades(html: str) -> Iterator[float]:
    """The shade of each grey picture, to ten."""
    from PIL import Image

    for data in re.findall('base64,([^"]+)', html):
        pixel = Image.open(io.BytesIO(base64.b64decode(data))).convert("L").getpixel((8, 8))
        assert isinstance(pixel, int)
        yield 10 * round(pixel / 10)


def test_settings_are_flattened_with_the_picture_sets_first() -> None:
    folders = [
        {"name": "a", "repeats": 2, "regularisation": False},
        {"name": "b", "repeats": 1, "regularisation": True},
    ]
    found = dict(
        flattened({"train": {"seed": 23, "betas": (0.9, 0.99)}, "sample": {"prompts": ["x"], "steps": 2}}, folders)
    )
    assert json.dumps(found) == json.dumps(
        {"source": "a × 2", "regularisation": "b × 1", "train.seed": 23, "train.betas": [0.9, 0.99], "sample.steps": 2}
    )
