"""The comparison page: who is on it, what of each recipe, and what where something is missing."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import replace as field_replace
from typing import Any

import pytest
from msgspec.structs import replace

from lorac.evaluate.figures import NAMES, Cell, HeldOut, Measure, Overall, Prompt, encode
from lorac.kinds import compare
from lorac.report.column import Column, Shown, ground
from lorac.report.compare import compare_page
from lorac.report.differences import flattened
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
    assert section(eleven, "recipes").count("was not built (its training may have diverged: see the build's") == 1


def zou_donner(measures: list[Measure]) -> tuple[float, float, float]:
    """Mean and interval, with equal weights, written out (Zou & Donner 2008, formulas 7 and 8 with 1/k each)."""
    k = len(measures)
    value = sum(one.value for one in measures) / k
    down = math.sqrt(sum((one.value - one.low) ** 2 for one in measures)) / k
    up = math.sqrt(sum((one.high - one.value) ** 2 for one in measures)) / k
    return value, value - down, value + up


def cell(column: Column, prompt: str, strength: float, name: str) -> Measure | None:
    """A figure straight from the figures."""
    assert column.figures
    number = [one.prompt for one in column.figures.prompts].index(prompt)
    (found,) = (c for c in column.figures.cells if (c.prompt, c.strength) == (number, strength))
    return found.measures[name]


def test_figures_are_over_the_prompts_that_all_share_at_full_strength(eleven: str) -> None:
    shared = [prompt for prompt, _ in PROMPTS[:2]]
    assert section(eleven, "recipes").count("<li") == len(shared)
    assert all(f">{prompt}</li>" in section(eleven, "recipes") for prompt in shared)
    assert "the 2 prompts that all evaluated recipes share, at strength 1.0" in section(eleven, "figures")
    panels = re.findall(r'<table class="lane">.*?</table>', section(eleven, "figures"), re.DOTALL)
    assert len(panels) == len(SHOWN)
    evaluated = [column for column in columns() if column.figures]
    for name, panel in zip(SHOWN, panels, strict=True):
        lanes = panel.split("<tr>")[1:]
        assert [re.findall('"row">([^<]+)<', lane)[0] for lane in lanes] == [column.name for column in evaluated]
        assert ("1 of 2 prompts" in panel) == (name == "recall"), "the first prompt asks for nothing"
        for lane, column in zip(lanes, evaluated, strict=True):
            value, low, high = zou_donner([m for p in shared if (m := cell(column, p, 1.0, name))])
            without, _, _ = zou_donner([m for p in shared if (m := cell(column, p, 0.0, name))])
            (found,) = re.findall(r'cx="([\d.]+)%"', lane)
            assert float(found) / 100 == pytest.approx(value, abs=6e-4)
            ((left, right),) = re.findall(r'"whisker" x1="([\d.]+)%" x2="([\d.]+)%"', lane)
            assert [float(left) / 100, float(right) / 100] == pytest.approx([low, high], abs=6e-4)
            (tick,) = re.findall(r'"without" x1="([\d.]+)%"', lane)
            assert float(tick) / 100 == pytest.approx(without, abs=6e-4)


def measured(name: str, prompts: list[tuple[str, str]], strengths: tuple[float, ...], **broken: int) -> Column:
    """A recipe whose figures say where they come from: prompt number / 10 + strength / 100; `broken`: measures that
    the prompt of that number has not."""
    cells = []
    for number, (prompt, _) in enumerate(prompts):
        for strength in strengths:
            value = int(prompt) / 10 + strength / 100
            found = {key: None if broken.get(key) == int(prompt) else Measure(value, 0, 1, 8) for key in NAMES}
            cells.append(Cell(number, strength, found, ()))
    base = figures()
    whole = tuple(Overall(at, dict.fromkeys(NAMES, Measure(0.99, 0.9, 1, 8)), ()) for at in strengths)
    listed = tuple(Prompt(prompt, negative, ()) for prompt, negative in prompts)
    own = replace(base, prompts=listed, strengths=strengths, cells=tuple(cells), overall=whole)
    return Column(name, losses=[0.1], figures=own)


def test_a_prompt_with_another_negative_is_another_prompt() -> None:
    one = measured("one", [("1", "x"), ("2", ""), ("3", "")], (0.0, 1.0))
    two = measured("two", [("3", ""), ("1", ""), ("2", "")], (0.0, 1.0))
    common = ground([one, two, Column("three")])
    assert common.prompts == [("2", ""), ("3", "")]
    assert [common.figure("severed", c).value for c in (one, two)] == pytest.approx([0.26, 0.26])  # type: ignore[union-attr]
    assert common.figure("severed", one, without=True).value == pytest.approx(0.25)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("own", "other", "strength"),
    [
        ((0.0, 0.5, 1.0), (0.0, 1.0, 1.2), 1.0),
        ((0.0, 0.5, 0.7, 1.0), (0.0, 0.5, 0.7), 0.7),
        ((0.0, 0.5), (0.0, 0.8), None),
    ],
)
def test_one_strength_is_compared(own: tuple[float, ...], other: tuple[float, ...], strength: float | None) -> None:
    one, two = measured("one", [("1", "")], own), measured("two", [("1", "")], other)
    common = ground([one, two])
    assert common.strength == strength
    values = [common.figure("severed", column).value for column in (one, two)]  # type: ignore[union-attr]
    at = (max(own), max(other)) if strength is None else (strength, strength)
    assert values == pytest.approx([0.1 + each / 100 for each in at])
    html = compare_page("t", "", [one, two]).decode()
    assert ("each at its own largest strength" in html) == (strength is None)
    heads = re.findall('<th scope="col">([^<]+)', section(html, "recipes"))
    assert ("Likeness" if strength is None else f"Likeness at strength {strength}") in heads
    own_strengths = [f"figures at {max(own)}", f"figures at {max(other)}"] if strength is None else []
    assert re.findall("figures at [0-9.]+", section(html, "recipes")) == own_strengths


def test_the_held_out_loss_stands_in_the_overview_if_any_recipe_has_one() -> None:
    one, two = (measured(name, [("1", "")], (0.0, 1.0)) for name in ("one", "two"))
    assert one.figures and two.figures
    with_loss = field_replace(one, figures=replace(one.figures, held_out=HeldOut(0.1046, 0.1231, 12)))
    without = field_replace(two, figures=replace(two.figures, held_out=None))
    html = section(compare_page("t", "", [with_loss, without, Column("none")]).decode(), "recipes")
    heads = re.findall('<th scope="col">([^<]+)', html)
    rows = [re.findall("<td[^>]*>([^<]*)", row) for row in html.partition("<tbody>")[2].split("<tr>")[1:]]
    assert heads.index("Held-out loss") == 2 and [len(row) for row in rows] == [len(heads) - 1] * 2 + [2]
    assert [row[1] for row in rows[:2]] == ["0.1046 (−15&nbsp;%)", "–"]
    assert f'colspan="{len(heads) - 2}"' in html
    bare = section(compare_page("t", "", [without, field_replace(without, name="three")]).decode(), "recipes")
    assert "eld-out" not in bare


def test_recipes_without_a_shared_prompt_show_their_own_and_the_page_says_so() -> None:
    made = [measured("one", [("1", "")], (0.0, 1.0)), measured("two", [("2", "")], (0.0, 1.0))]
    html = compare_page("t", "", made).decode()
    assert "They share no prompt: figures are over each recipe's own prompts, at strength 1.0" in html
    assert section(html, "recipes").count("99\u202f%<i>90–100</i>") == 8


def test_where_a_figure_has_no_meaning_the_prompt_counts_for_nobody() -> None:
    """All pictures of prompt 2 are broken in one recipe: nobody's heads of prompt 2 count."""
    prompts = [("1", ""), ("2", "")]
    one, two = measured("one", prompts, (0.0, 1.0)), measured("two", prompts, (0.0, 1.0), severed=2)
    nobody = measured("nobody", prompts, (0.0, 1.0))
    assert nobody.figures
    empty = tuple(replace(c, measures=c.measures | {"severed": None}) for c in nobody.figures.cells)
    common = ground([one, two, Column("nobody", losses=[0.1], figures=replace(nobody.figures, cells=empty))])
    assert common.prompts_of("severed") == [("1", "")]
    values = [common.figure("severed", column) for column in common.columns]
    assert [value and value.value for value in values] == [pytest.approx(0.11), pytest.approx(0.11), None]
    assert common.prompts_of("broken") == prompts


def test_each_prompt_has_a_block_with_pictures_and_figures_of_every_recipe_that_drew_it() -> None:
    off = {name: png(8, 8, shade) for shade, name in enumerate(("1", "2", "3"))}
    shown = {
        name: Shown(name, "", data, {0.5: png(8, 8, 90 + i), 1.0: png(8, 8, 99)})
        for i, (name, data) in enumerate(off.items())
    }
    one = measured("one", [("1", ""), ("2", "")], (0.0, 0.5, 1.0))
    two = measured("two", [("2", ""), ("3", ""), ("1", "")], (0.0, 0.5, 1.0))
    first = field_replace(one, prompts=[shown["1"], shown["2"]])
    second = field_replace(two, prompts=[shown["2"], shown["3"], shown["1"], field_replace(shown["1"], negative="no")])
    html = section(compare_page("t", "", [first, second]).decode(), "prompts")
    groups = re.split("<h3", html)[1:]
    assert [re.findall('dir="auto">([^<]+)', group)[0] for group in groups] == ["1", "2", "3", "1"]
    assert ["Negative prompt: no" in group for group in groups] == [False, False, False, True]
    for name, group, count in zip("1231", groups, (2, 2, 1, 1), strict=True):
        pictures = [base64.b64decode(data) for data in re.findall('base64,([^"]+)', group)]
        assert pictures == [off[name], *[*shown[name].at.values()] * count]
        digits = re.findall(r"<dd>([^<]+)</dd>", group)
        value = "–" if "Negative" in group else f"{100 * (int(name) / 10 + 0.01):.0f}\u202f%"
        assert digits == [value] * len(NAMES) * count
        assert group.count("class=chosen") == count
        assert group.count("preferred weight 0.7 was not drawn; shaded: the nearest") == count


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


def test_curves_have_one_scale_that_a_wild_one_does_not_set() -> None:
    calm = [Column(f"calm {number}", losses=losses(600, number)) for number in range(4)]
    wild = Column("wild", losses=losses(600, 9, 0.1, 4.0))
    html = section(compare_page("t", "", [calm[0], wild, *calm[1:]]).decode(), "loss")
    curves = re.findall(r'<polyline id="loss(\d+)" vector-effect="non-scaling-stroke" points="([^"]+)"', html)
    assert [int(number) for number, _ in curves] == list(range(5))
    heights = {int(n): [int(p.partition(",")[2]) for p in points.split(" ")] for n, points in curves}
    assert min(heights[1]) < 0, "the wild one leaves the panel"
    assert all(0 <= y <= 1000 for number, ys in heights.items() if number != 1 for y in ys)
    assert html.count('class="first"') == 5
    assert html.count('class="raw"') == 5 * 4


def test_a_single_loss_that_is_no_number_is_left_out() -> None:
    """As with fp16, whose scale of the loss is found by trying."""
    html = compare_page("t", "", [Column("one", losses=[math.nan, *[0.02] * 99, 0.02])]).decode()
    (points,) = re.findall(r'points="([^"]+)"', html)
    assert points.endswith("1000,0") or points.split(" ")[-1].startswith("99")
    assert "0.0200 in the end" in html


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
    html = compare_page("t", "", [Column("one"), Column("two", losses=[0.1, 0.2])]).decode()
    assert "was not built" in html and "was not evaluated" in html
    assert not {"figures", "prompts", "settings"} & set(re.findall('<section id="([^"]+)"', html))


def test_the_kind_takes_whatever_ports_there_are() -> None:
    """Recipe 0 has everything, recipe 1 only losses, recipe 2 nothing."""
    settings = {"network": {"alpha": 1.0}, "sample": {"prompts": [], "steps": 20}}
    folders = [{"name": "set", "repeats": 36, "regularisation": False}]
    sets = [{"path": "set", "repeats": 36}]
    about = {"comment": "", "settings": settings, "folders": folders, "sets": sets, "strengths": [0.5, 1.0]}
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
    pictures = section(html, "prompts")
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
    sets = [
        {"path": "a", "repeats": 2, "trigger": ["x"], "alpha": None, "alpha_mask": False},
        {"generate": {"prompt": "1girl", "count": 400}, "repeats": 1, "caption": "", "alpha": "white"},
    ]
    settings = {"train": {"seed": 23, "betas": (0.9, 0.99)}, "sample": {"prompts": ["x"], "steps": 2}}
    assert json.dumps(dict(flattened(settings, folders, sets))) == json.dumps(
        {
            "[[source]]": [{"path": "a", "repeats": 2, "trigger": ["x"]}],
            "[[regularisation]]": [{"generate": {"prompt": "1girl", "count": 400}, "alpha": "white"}],
            "train.seed": 23,
            "train.betas": [0.9, 0.99],
            "sample.steps": 2,
        }
    )
