"""The pages in headless Chromium, opened from files: nothing is missing, nobody complains, all of it fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import PROGRAM, Browser
from tests.pages import write

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")

PAGES = ("report", "compare", "build", "null")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pages") / "比べる – ü"
    write(made)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_a_file(browser: Browser, folder: Path, name: str, width: int, dark: bool) -> None:
    path = folder / f"{name}.html"
    browser.open(path, width, dark=dark)
    assert browser.messages == []
    assert browser.requests() == [path.as_uri()]
    count, lost = browser.value("[document.images.length, [...document.images].filter(i => !i.naturalWidth).length]")
    assert lost == 0
    assert count == path.read_text("utf-8").count("<img ")
    assert browser.value("document.documentElement.scrollWidth") == width
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 21, 24)" if dark else "rgb(255, 255, 255)")


WIDE = """[...document.querySelectorAll("body *")].filter(element => {
    if (element.closest(".scroll, svg, .defs")) return false;
    const box = element.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(element => element.outerHTML.slice(0, 80))"""
TINY = """[...document.querySelectorAll("main svg.graph text")].map(text => text.getBoundingClientRect().height)"""


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_nothing_is_cut_off_and_the_graph_is_legible(browser: Browser, folder: Path, name: str) -> None:
    browser.open(folder / f"{name}.html", 360)
    assert browser.value(WIDE) == []
    assert all(height >= 9 for height in browser.value(TINY))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints(browser: Browser, folder: Path, name: str) -> None:
    browser.open(folder / f"{name}.html", 1200)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 10_000


def test_nothing_runs_and_nothing_is_fetched_even_if_markup_slipped_through(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    """The pages' policy is in force: a script and a picture from outside, put in by hand, are refused."""
    bad = "<script>document.title = 'ran'</script><img src='file:///etc/hostname'><link rel=stylesheet href=x.css>"
    path = tmp_path / "bad.html"
    path.write_text((folder / "null.html").read_text("utf-8").replace("</main>", f"{bad}</main>"), encoding="utf-8")
    browser.open(path, 1200)
    assert browser.value("document.title") != "ran"
    assert any("Content Security Policy" in message for message in browser.messages)
    assert browser.value("[...document.images].filter(image => image.naturalWidth).length") == 0
