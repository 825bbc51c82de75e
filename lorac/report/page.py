"""One self-contained HTML page about a build: what was made, from what, and how it went."""

from __future__ import annotations

from collections.abc import Mapping

from lorac.report.content import Folder, LeftOut, Outline, Picture, Report, Row, Table
from lorac.report.evaluation import evaluation_section
from lorac.report.graph import graph_section
from lorac.report.markup import document, number, percent, text
from lorac.report.measures import MEANINGS
from lorac.report.pictures import picture_section
from lorac.report.recipe import recipe_section, without_folder
from lorac.report.samples import column_name, nearest, sample_section, spoken_strength
from lorac.report.training import training_section

__all__ = ["Folder", "LeftOut", "Outline", "Picture", "Report", "Row", "Table", "page"]

_HEADLINE = ("likeness", "recall", "severed", "leakage")
"""The figures at the top of the page."""


def page(report: Report) -> bytes:
    """The page as UTF-8. Equal reports give equal bytes; the page loads nothing and runs no script.

    Raises ValueError where the report contradicts itself: a picture that is neither PNG nor WebP, rows without
    strengths, or `regularisation_steps` of another length than `losses`.
    """
    preferred = report.figures.preferred_weight if report.figures else None
    sections = {
        "Samples": sample_section(report.rows, report.strengths, preferred),
        "Evaluation": evaluation_section(report.figures, report.rows),
        "Training": training_section(report),
        "Pictures": picture_section(report.folders, report.pictures, report.left_out),
        "Graph": graph_section(report.outline),
        "Recipe": recipe_section(report.recipe),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a> ' for name, section in sections.items() if section)
    return document(
        report.name,
        f"{_header(report, links)}<main>\n{''.join(sections.values())}</main>\n"
        "<footer><p>Made by lorac from the recipe alone. No times and no paths are on this page: "
        "the same build gives the same page, byte for byte. "
        'Measured memory and times: <a href="build.html">build.html</a>.</p></footer>\n',
    )


def _header(report: Report, links: str) -> str:
    comment = f'<p class="comment" dir="auto">{text(report.comment)}</p>\n' if report.comment else ""
    counts = {name: number(value) for name, value in report.summary.items()}
    return (
        f'<header><p class="origin">LoRA from <bdi>{text(without_folder(report.recipe_file))}</bdi></p>\n'
        f'<h1 dir="auto">{text(report.name)}</h1>\n{comment}'
        f"{_facts(_headline(report), 'headline')}{_facts(counts)}\n"
        f"{f'<nav>{links}</nav>' if links else ''}\n</header>\n"
    )


def _headline(report: Report) -> dict[str, str]:
    """What the evaluation says at the preferred weight, or at the drawn strength that is nearest to it."""
    figures = report.figures
    if figures is None or figures.preferred_weight is None:
        return {}
    at = nearest(figures.preferred_weight, figures.strengths)
    whole = next((one for one in figures.overall if one.strength == at), None)
    measures = {name: whole.measures.get(name) for name in _HEADLINE} if whole else {}
    where = "" if at is None else f" at {spoken_strength(at)}"
    shown = {MEANINGS[name].label + where: percent(measure.value) for name, measure in measures.items() if measure}
    return {"preferred weight": column_name(figures.preferred_weight), **shown}


def _facts(values: Mapping[str, str], style: str = "") -> str:
    if not values:
        return ""
    pairs = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>\n" for name, value in values.items())
    return f'<dl class="facts{" " if style else ""}{style}">{pairs}</dl>'
