"""The table of findings says what the figures say."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks import article
from lorac.evaluate.figures import NAMES, Cell, Figures, HeldOut, Measure, Prompt

STRENGTHS = (0.0, 0.5, 0.7, 1.0)


def figures(**at_one: float) -> Figures:
    """A run whose measures are 0.3 everywhere but for those given, at strength 1."""
    negatives = [(prompt, "") for prompt in article.SHARED]
    cells = [
        Cell(number, strength, {name: _measure(at_one.get(name, 0.3) if strength == 1 else 0.3) for name in NAMES}, ())
        for number in range(len(negatives))
        for strength in STRENGTHS
    ]
    return Figures(
        count=16,
        threshold=0.35,
        identity=(),
        training_tags={},
        strengths=STRENGTHS,
        prompts=tuple(Prompt(prompt, negative, ()) for prompt, negative in negatives),
        cells=tuple(cells),
        overall=(),
        held_out=HeldOut(0.05, 0.06, 12),
        trade_off=(),
        preferred_weight=0.7,
    )


def _measure(value: float) -> Measure:
    return Measure(value, value - 0.05, value + 0.05, 16)


def runs(**changed: Figures) -> article.Runs:
    return article.Runs({name: figures() for name in article.RUNS} | changed)


def verdicts(found: article.Runs) -> dict[int, str]:
    return {finding.number: finding.verdict for finding in article.findings(found)}


def test_equal_runs_leave_everything_open() -> None:
    assert verdicts(runs()) == {n: "not measured" if n in (1, 11) else "open" for n in range(1, 13)}


def test_a_severed_head_at_strength_1_alone_agrees_where_the_article_says_so() -> None:
    found = verdicts(runs(**{article.HEAD: figures(severed=0.9)}))
    assert {n for n, verdict in found.items() if verdict == "agrees"} == {4, 5, 6}
    assert found[8] == "agrees in part"  # the other half is about broken pictures


def test_the_contrary_disagrees() -> None:
    found = verdicts(runs(**{article.HEAD: figures(severed=0.0), article.OUTFITS: figures(closed_eyes=0.0)}))
    assert [found[n] for n in (4, 5, 6, 12)] == ["disagrees"] * 4
    assert found[8] == "disagrees in part"


def test_the_page_has_every_run_and_every_finding() -> None:
    page = article.page(runs(), dict.fromkeys(article.RUNS, 2808))
    for number in range(1, 13):
        assert f"\n**{number}. " in page
    for about in article.RUNS.values():
        assert f"| {about} | 2808 |" in page
    assert "not measured: 2" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_a_prompt_that_a_run_lacks_is_named() -> None:
    short = msgspec.structs.replace(figures(), prompts=(Prompt(article.BARE, "closed eyes", ()),))
    with pytest.raises(KeyError, match="did not draw"):
        article.findings(runs(**{article.HEAD: short}))


def test_a_run_that_was_not_built_leaves_the_others_their_findings() -> None:
    found = runs(**{article.HEAD: figures(severed=0.9)})
    without = article.Runs({name: own for name, own in found.figures.items() if name != article.HEAD_REG})
    assert verdicts(without)[4] == "not measured"
    assert verdicts(without)[5] == "agrees"
    assert "| head only, generated regularisation | not built |" in article.page(
        without, dict.fromkeys(article.RUNS, 1)
    )
