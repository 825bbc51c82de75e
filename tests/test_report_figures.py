"""The figures on the page: each dot and whisker stands where its number says, and nothing is left out."""

from __future__ import annotations

import base64
import re

import pytest
from msgspec.structs import replace

from lorac.evaluate.figures import NAMES, Measure
from lorac.report.dots import dot
from lorac.report.evaluation import MOST_LEAKED, definitions, evaluation_section
from lorac.report.markup import image_size, percent
from lorac.report.measures import MEANINGS, SHOWN
from lorac.report.page import Report, page
from lorac.report.samples import nearest, sample_section
from tests.pages import PROMPTS, STRENGTHS, figures, rows

DOT = re.compile(r'<svg class="dot.*?</svg>')
CELL = re.compile(r'<div class="cell.*?</table>', re.DOTALL)


def places(svg: str) -> dict[str, float]:
    """Where the parts of a dot stand, as shares of its line."""
    found = {
        "value": re.findall(r'cx="([\d.]+)%"', svg),
        "low": re.findall(r'"whisker" x1="([\d.]+)%"', svg),
        "high": re.findall(r'"whisker" x1="[\d.]+%" x2="([\d.]+)%"', svg),
        "without": re.findall(r'"without" x1="([\d.]+)%"', svg),
    }
    return {name: float(value[0]) / 100 for name, value in found.items() if value}


def test_every_cell_shows_every_measure_where_it_belongs() -> None:
    made = figures()
    drawn = CELL.findall(evaluation_section(made, ()))
    assert len(drawn) == len(made.cells) == len(PROMPTS) * len(STRENGTHS)
    for html, cell in zip(drawn, made.cells, strict=True):
        off = next(one for one in made.cells if one.prompt == cell.prompt and one.strength == 0)
        there = {name: measure for name in SHOWN if (measure := cell.measures[name])}
        assert html.count("<tr") == len(NAMES)
        assert html.count("–") == len(NAMES) - len(there)
        for svg, (name, measure) in zip(DOT.findall(html), there.items(), strict=True):
            expected = {"value": measure.value, "low": measure.low, "high": measure.high}
            without = off.measures[name]
            if cell.strength and without:
                expected["without"] = without.value
            assert places(svg) == pytest.approx(expected, abs=0.0006)
            assert f"{MEANINGS[name].label} {percent(measure.value)}, between" in svg
            assert (" good" in svg) == (name in ("likeness", "recall"))


def test_the_panels_show_all_strengths_with_the_preferred_one_marked() -> None:
    made = figures()
    panels = re.findall(r'<figure class="panel.*?</figure>', evaluation_section(made, ()), re.DOTALL)
    assert len(panels) == len(NAMES) + 1
    for name, panel in zip(SHOWN, panels, strict=False):
        heights = [1 - float(y) / 100 for y in re.findall(r'cy="([\d.]+)%"', panel)]
        assert heights == pytest.approx([one.measures[name].value for one in made.overall], abs=0.0006)  # type: ignore[union-attr]
        assert re.findall(r'<rect class="marked" x="(\S+)%"', panel) == ["50"]
    scores = [1 - float(y) / 100 for y in re.findall(r'cy="([\d.]+)%"', panels[-1])]
    assert scores == pytest.approx([one.score for one in made.trade_off])


def test_without_a_preferred_weight_nothing_is_marked() -> None:
    html = evaluation_section(figures(preferred=None), ())
    assert "marked" not in html and "chosen" not in html and "preferred" not in html.partition("<h3>Prompt by")[2]


def test_the_page_says_how_the_preferred_weight_was_found() -> None:
    made = figures(preferred=None)
    score = max(made.trade_off, key=lambda one: one.score)
    html = evaluation_section(replace(made, preferred_weight=score.strength), ())
    assert f"shaded the preferred weight, {score.strength:g}, which has the best trade-off<" in html
    other = next(one.strength for one in made.trade_off if one.score < score.score)
    html = evaluation_section(replace(made, preferred_weight=other), ())
    assert f"shaded the preferred weight, {float(other)}, which is the recipe's<" in html


def test_a_preferred_weight_that_was_not_drawn_marks_the_nearest_and_says_so() -> None:
    html = evaluation_section(figures(preferred=0.8), ())
    assert "shaded 0.7, the drawn strength nearest to the preferred weight, 0.8, which is the recipe's<" in html
    assert re.findall(r'<rect class="marked" x="(\S+)%"', html) == ["50"] * (len(NAMES) + 1)
    assert html.count('0.7<span class="pill">nearest to the preferred 0.8</span>') == len(PROMPTS)
    header = page(Report("r", "r.toml", figures=figures(preferred=0.8))).decode().partition("<main>")[0]
    value = figures().overall[2].measures["likeness"]
    assert value and f"<dt>likeness at strength 0.7</dt><dd>{percent(value.value)}</dd>" in header


def test_the_headline_names_the_strength_also_if_it_is_the_preferred_weight() -> None:
    header = page(Report("r", "r.toml", figures=figures(preferred=1.0))).decode().partition("<main>")[0]
    assert re.findall("<dt>([^<]+)</dt>", header) == [
        "preferred weight",
        *(f"{MEANINGS[name].label} at strength 1.0" for name in ("likeness", "recall", "severed", "leakage")),
    ]


def test_where_no_tags_make_the_character_the_page_says_why_figures_are_missing() -> None:
    assert "nothing says what makes the character" not in evaluation_section(figures(), ())
    html = evaluation_section(replace(figures(preferred=None), identity=(), trade_off=()), ())
    assert "no likeness, no trade-off and no preferred weight: nothing says what makes the character" in html
    assert "<code>evaluate.character</code>" in html and "<code>[caption]</code>" in html
    chosen = evaluation_section(replace(figures(preferred=0.7), identity=(), trade_off=()), ())
    assert "no likeness and no trade-off: nothing says" in chosen, "the recipe names a weight"


def test_what_counts_broken_pictures_says_so() -> None:
    assert {name for name in NAMES if "roken pictures count too" in MEANINGS[name].definition} == {
        "similarity",
        "sameness",
    }


@pytest.mark.parametrize(
    ("preferred", "strengths", "found"),
    [
        (0.7, (0.0, 0.5, 0.7), 0.7),
        (0.75, (0.0, 0.5, 1.0), 0.5),
        (0.1, (0.0, 0.5), 0.5),
        (-0.4, (0.0, -0.5, 0.5), -0.5),
        (0.7, (0.0,), None),
        (None, (0.5,), None),
    ],
)
def test_the_nearest_strength(preferred: float | None, strengths: tuple[float, ...], found: float | None) -> None:
    assert nearest(preferred, strengths) == found


def test_all_pictures_stand_in_their_cells_in_order() -> None:
    made, shown = figures(), rows(3)
    html = evaluation_section(made, shown)
    strips = re.findall(r'<div class="shots".*?</div>', html, re.DOTALL)
    expected = [sheet for row in shown for sheet in row.sheets]
    assert [re.findall('base64,([^"]+)', strip) for strip in strips] == [
        [base64.b64encode(picture).decode() for picture in sheet] for sheet in expected
    ]
    assert all(image_size(picture) == (128, 128) for sheet in expected for picture in sheet)
    assert rows(3) == shown


def test_what_leaked_is_listed_by_how_much_it_leaked() -> None:
    made = figures()
    html = evaluation_section(made, ())
    table = html[html.index('<table class="leaks">') :]
    assert re.findall(r'<th scope="row" dir="auto">([^<]+)', table) == ["white background", "close-up", "brown skirt"]
    tag = made.overall[1].leaked[0]
    many = tuple(replace(tag, tag=f"tag {number:02}", rate=0.99 - number / 100) for number in range(15))
    html = evaluation_section(replace(made, overall=tuple(replace(one, leaked=many) for one in made.overall)), ())
    listed = re.findall(r'<th scope="row" dir="auto">(tag \d\d)', html)
    assert listed == [f"tag {number:02}" for number in range(MOST_LEAKED)]
    assert "… and 3 more tags." in html


def test_every_measure_is_explained() -> None:
    html = definitions()
    assert all(MEANINGS[name].definition in html and f"<dt>{MEANINGS[name].label}" in html for name in NAMES)


def test_a_dot_stays_on_its_line() -> None:
    assert places(dot(Measure(1.2, -0.1, 1.3, 4), "good")) == {"value": 1.0, "low": 0.0, "high": 1.0}


def test_the_grid_says_which_strength_is_preferred() -> None:
    html = sample_section(rows(1), STRENGTHS, 0.7)
    assert re.findall(r'<th scope="col">([\d.of]+)(<span|</th>)', html) == [
        *(("off", "</th>"), ("0.5", "</th>"), ("0.7", "<span"), ("1.0", "</th>"))
    ]


def test_without_figures_there_is_no_section() -> None:
    assert evaluation_section(None, ()) == ""
