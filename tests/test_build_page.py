"""build.html: what a build says of itself, beside build.json and made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorac.report.build_page import build_page, duration, size
from tests.pages import READS, facts
from tests.running import lorac
from tests.test_report import Document


def test_it_says_what_was_made_and_how_long_it_took() -> None:
    document = Document(build_page(facts(), READS))
    numbers = document.text_of("dd")
    assert document.text_of("dt")[0] == "the whole build, all its recipes", "a collection's recipes share the seconds"
    assert numbers == ["24 min 20 s", "476", "0", "2,808", "2.26", "20 min 43 s", "1.2 GiB"]
    rows = document.text_of("span")
    assert "20 min 43 s" in rows and "3 min 07 s" in rows
    widths = [attrs["style"] for tag, attrs in document.elements if tag == "span" and attrs.get("class") == "bar"]
    assert "width:calc((100% - 6rem)*1.0000)" in widths
    assert f"width:calc((100% - 6rem)*{187 / 1243.2:.4f})" in widths
    assert {"report.html", "build.json"} <= set(document.attributes("a", "href"))
    assert "0123456789abcdef" * 4 in document.text_of("code")


def test_a_build_that_found_everything_says_so() -> None:
    document = Document(build_page(facts(null=True), READS))
    assert "Nothing had changed: everything was found." in document.text_of("p")
    assert 'class="bar"' not in build_page(facts(null=True), READS).decode()
    assert document.text_of("dd")[1:] == ["0", "476"]


def test_what_is_equal_to_something_made_is_not_said_to_have_been_there() -> None:
    """400 transparent pictures are one that is made and 399 like it, also in a first build."""
    told = facts()
    told["kinds"]["latent"] |= {"runs": 1, "hits": 399}
    told |= {"runs": 404, "hits": 399}
    document = Document(build_page(told, READS))
    (verdict,) = [text for text in document.text_of("p") if " made, of " in text]
    assert verdict.endswith("; 399 more were there before or are equal to one that was made.")
    assert "found or equal" in document.text_of("dt") and "peak memory in training, measured" in document.text_of("dt")


def test_names_are_inert() -> None:
    hostile = "<b>&'\""
    plain, changed = facts(), facts()
    changed |= {"recipe": hostile, "outputs": {hostile: plain["outputs"]["report.html"]}}
    plain |= {"recipe": "r", "outputs": {"f": plain["outputs"]["report.html"]}}
    document = Document(build_page(changed, READS))
    assert document.structure() == Document(build_page(plain, READS)).structure()
    assert document.text_of("h1") == [hostile]
    assert hostile in document.text_of("bdi")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0312, "0.031 s"), (4.25, "4.2 s"), (59.4, "59 s"), (59.9, "60 s"), (725, "12 min 05 s"), (7530, "2 h 05 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(812, "812 bytes"), (1024, "1.0 KiB"), (14402968, "13.7 MiB")])
def test_sizes(count: float, shown: str) -> None:
    assert size(count) == shown


def test_it_loads_nothing_heavy_and_no_figures() -> None:
    """Every build makes this page, also one that finds everything."""
    code = "import sys, lorac.report.build_page; print({'torch', 'numpy', 'PIL', 'msgspec', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_build_writes_it_and_a_null_build_too(built_copy: Path) -> None:
    folder = built_copy / "build" / "recipe"
    first = (folder / "build.html").read_text("utf-8")
    assert "nothing was there before" in first
    assert lorac("build", "recipe.toml").exit_code == 0
    assert "Nothing had changed" in (folder / "build.html").read_text("utf-8")
    assert "build.html" not in json.loads((folder / "build.json").read_text("utf-8"))["outputs"]


def test_the_report_shows_what_the_rules_left_out_and_the_graph(built: Path) -> None:
    html = (built / "build" / "recipe" / "report.html").read_text("utf-8")
    left = html[html.index("Left out by the rules") :]
    assert re.findall(r'dir="auto">([^<]+)</th><td><span[^>]*></span><span class="count">(\d+)', left)[:2] == [
        ("1girl", "3"),
        ("solo", "3"),
    ]
    kinds = re.findall(r'<g class="box"><rect[^>]*/><text[^>]*>(\w+)</text>', html)
    assert {"source", "image", "caption", "train", "export", "report"} <= set(kinds)
    assert '= "pictures"' in Document(html.encode()).text_of("span")
