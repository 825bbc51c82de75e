"""One self-contained HTML page about a build: what was made, from what, and how it went."""

from __future__ import annotations

from lorac.report.content import Folder, Picture, Report, Row
from lorac.report.markup import number, text
from lorac.report.pictures import picture_section
from lorac.report.samples import sample_section
from lorac.report.settings import settings_section, without_folder
from lorac.report.style import STYLE
from lorac.report.training import training_section

__all__ = ["Folder", "Picture", "Report", "Row", "page"]

# The browser itself then refuses scripts and anything from outside, should a caption ever slip through as markup.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> bytes:
    """The page as UTF-8. Equal reports give equal bytes; the page loads nothing and runs no script.

    Raises ValueError where the report contradicts itself: a picture that is no PNG, rows without strengths, or
    `regularisation_steps` of another length than `losses`.
    """
    sections = {
        "Samples": sample_section(report.rows, report.strengths),
        "Training": training_section(report),
        "Pictures": picture_section(report.folders, report.pictures),
        "Settings": settings_section(report.settings),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a> ' for name, section in sections.items() if section)
    document = (
        f"{_head(report)}<body>\n{_header(report, links)}<main>\n{''.join(sections.values())}</main>\n"
        "<footer><p>Made by lorac from the recipe alone. No times and no paths are on this page: "
        "the same build gives the same page, byte for byte.</p></footer>\n</body>\n</html>\n"
    )
    return document.encode("utf-8")


def _head(report: Report) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="lorac">\n'
        f'<title>{text(report.name)} &ndash; lorac</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{STYLE}</style>\n</head>\n"
    )


def _header(report: Report, links: str) -> str:
    figures = "".join(
        f"<div><dt>{text(name)}</dt><dd>{number(value)}</dd></div>\n" for name, value in report.summary.items()
    )
    comment = f'<p class="comment" dir="auto">{text(report.comment)}</p>\n' if report.comment else ""
    return (
        f'<header><p class="origin">LoRA from <bdi>{text(without_folder(report.recipe_file))}</bdi></p>\n'
        f'<h1 dir="auto">{text(report.name)}</h1>\n{comment}'
        f"{f'<dl>{figures}</dl>' if figures else ''}\n"
        f"{f'<nav>{links}</nav>' if links else ''}\n</header>\n"
    )
