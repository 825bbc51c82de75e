"""Recipes side by side: their figures, pictures of the prompts that they share, their losses, and how they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from lorac.evaluate.figures import Figures, Measure
from lorac.report.dots import dot
from lorac.report.evaluation import definitions
from lorac.report.markup import document, image, number, percent, plural, text
from lorac.report.measures import MEANINGS, SHOWN
from lorac.report.overlay import loss_section
from lorac.report.recipe import toml
from lorac.report.samples import column_name, shown_prompt

FULL = 1.0
"""The strength at which all recipes are compared."""
_SHORT = 24
"""Characters of a setting that has room in a table."""


@dataclass(frozen=True)
class Shown:
    """The pictures of one prompt: without the LoRA, and at each of some strengths."""

    prompt: str
    negative: str
    off: bytes
    at: Mapping[float, bytes]


@dataclass(frozen=True)
class Column:
    """One recipe. `settings`: by dotted name. What it has not is empty or None."""

    name: str
    comment: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[Shown] = ()
    losses: Sequence[float] = ()
    figures: Figures | None = None

    @property
    def link(self) -> str:
        """An <a> to the recipe's own report."""
        return f'<a href="../{quote(self.name)}/report.html">{text(self.name)}</a>'

    def overall(self, strength: float | None) -> Mapping[str, Measure | None]:
        """The figures of all prompts at a strength; none where it was not measured."""
        found = (one.measures for one in (self.figures.overall if self.figures else ()) if one.strength == strength)
        return next(found, {})

    @property
    def preferred(self) -> float | None:
        """The strength that suits it best."""
        return self.figures.preferred_weight if self.figures else None


def compare_page(title: str, comment: str, columns: Sequence[Column]) -> bytes:
    """The page as UTF-8. Equal columns give equal bytes; the page loads nothing and runs no script."""
    sections = {
        "Recipes": _recipes(columns),
        "Figures": _figures(columns),
        "Pictures": _pictures(columns),
        "Loss": loss_section([(column.name, column.losses) for column in columns]),
        "Settings": _settings(columns),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a> ' for name, section in sections.items() if section)
    said = f'<p class="comment" dir="auto">{text(comment)}</p>\n' if comment else ""
    body = (
        f'<header><p class="origin">{plural(len(columns), "recipe")}, compared</p>\n<h1 dir="auto">{text(title)}</h1>\n'
        f"{said}<nav>{links}</nav>\n</header>\n<main>\n{''.join(sections.values())}</main>\n"
        "<footer><p>Made by lorac from the recipes alone: the same builds give the same page, byte for byte.</p>"
        "</footer>\n"
    )
    return document(title, body)


def _recipes(columns: Sequence[Column]) -> str:
    """The overview: one line for each recipe, at its preferred weight."""
    heads = ("Recipe", "Steps", "Weight", *(MEANINGS[name].label.capitalize() for name in SHOWN[:4]))
    rows = "".join(_overview(column) for column in columns)
    return (
        '<section id="recipes"><h2>Recipes</h2>\n<p class="lead">Each with a report of its own, and the figures at its '
        "preferred weight.</p>\n"
        '<div class="scroll"><table class="overview"><thead><tr>'
        f"{_heads(heads)}</tr></thead>\n<tbody>{rows}</tbody></table></div></section>\n"
    )


def _heads(names: Sequence[str]) -> str:
    """Cells of markup above the columns of a table."""
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def _overview(column: Column) -> str:
    said = f'<p class="note" dir="auto">{text(column.comment)}</p>' if column.comment else ""
    steps = number(len(column.losses)) if column.losses else ""
    measures, preferred = column.overall(column.preferred), column.preferred
    if not column.losses:
        rest = '<td colspan="5" class="none">was not built</td>'
    elif column.figures is None:
        rest = f'<td colspan="5" class="none">{_unmeasured(column)}</td>'
    else:
        weight = "–" if preferred is None else column_name(preferred)
        rest = f"<td>{weight}</td>" + "".join(_digits(measures.get(name)) for name in SHOWN[:4])
    return f'<tr><th scope="row">{column.link}{said}</th><td>{steps}</td>{rest}</tr>\n'


def _unmeasured(column: Column) -> str:
    lost = next((step for step, loss in enumerate(column.losses, 1) if not math.isfinite(loss)), None)
    return "was not evaluated" if lost is None else f"diverged: its loss is no number from step {number(lost)} on"


def _digits(measure: Measure | None) -> str:
    return f"<td>{percent(measure.value) if measure else '–'}</td>"


def _figures(columns: Sequence[Column]) -> str:
    """A panel for each measure, in it a line for each recipe: at its preferred weight, and at full strength."""
    if not any(column.figures for column in columns):
        return ""
    panels = "".join(_panel(name, columns) for name in SHOWN)
    return (
        '<section id="figures"><h2>Figures</h2>\n'
        '<p class="lead">All prompts of a recipe together. Filled dots: at its preferred weight. Rings: at strength '
        "1.0. Lines: 95&nbsp;% intervals. Grey ticks: without the LoRA.</p>\n"
        f'{definitions()}<div class="lanes">\n{panels}</div></section>\n'
    )


def _panel(name: str, columns: Sequence[Column]) -> str:
    meaning = MEANINGS[name]
    rows = "".join(_lane(name, column) for column in columns if column.figures)
    return (
        f'<table class="lane"><caption>{meaning.label} <span>{meaning.direction}</span></caption>\n'
        f"<tbody>{rows}</tbody></table>\n"
    )


def _lane(name: str, column: Column) -> str:
    meaning = MEANINGS[name]
    without = column.overall(0.0).get(name)
    chosen, full = column.overall(column.preferred).get(name), column.overall(FULL).get(name)
    dots, digits = [], []
    if chosen:
        dots.append(dot(chosen, meaning.style, without, f"{meaning.label} at the preferred weight"))
        digits.append(percent(chosen.value))
    if full and column.preferred != FULL:
        dots.append(dot(full, f"{meaning.style} ring", without, f"{meaning.label} at strength 1.0"))
        digits.append(f"<i>{percent(full.value)}</i>")
    name = text(column.name)
    return f'<tr><th scope="row">{name}</th><td>{"".join(dots)}</td><td>{"".join(digits) or "–"}</td></tr>\n'


def _pictures(columns: Sequence[Column]) -> str:
    """The prompts that at least two recipes share, each with the pictures of all of them."""
    by_prompt: dict[str, list[tuple[Column, Shown]]] = {}
    for column in columns:
        for shown in column.prompts:
            by_prompt.setdefault(shown.prompt, []).append((column, shown))
    shared = {prompt: pairs for prompt, pairs in by_prompt.items() if len(pairs) > 1}
    if not by_prompt:
        return ""
    groups = "".join(_group(prompt, pairs) for prompt, pairs in (shared or by_prompt).items())
    rest = len(by_prompt) - len(shared) if shared else 0
    more = f'<p class="note">{plural(rest, "prompt")} of one recipe alone: see its own report.</p>\n' if rest else ""
    return (
        '<section id="pictures"><h2>Pictures</h2>\n'
        '<p class="lead">The first picture of each prompt, from the same noise everywhere.</p>\n'
        f"{groups}{more}</section>\n"
    )


def _group(prompt: str, pairs: Sequence[tuple[Column, Shown]]) -> str:
    """Pictures without the LoRA are shown once for all recipes that have the same."""
    cards, seen = [], set()
    for column, shown in pairs:
        if shown.off not in seen:
            seen.add(shown.off)
            cards.append(
                f'<figure class="versus"><figcaption>without a LoRA</figcaption>{_shots({0.0: shown.off})}</figure>'
            )
        marked = column.preferred
        cards.append(
            f'<figure class="versus"><figcaption>{column.link}</figcaption>{_shots(shown.at, marked)}</figure>'
        )
    return f'<h3 dir="auto">{text(shown_prompt(prompt))}</h3>\n<div class="versuses">\n{"".join(cards)}</div>\n'


def _shots(pictures: Mapping[float, bytes], marked: float | None = None) -> str:
    shots = "".join(
        f"<div{' class=chosen' if at and at == marked else ''}>{image(data, f'strength {column_name(at)}')}"
        f"<span>{column_name(at)}</span></div>"
        for at, data in pictures.items()
    )
    return f'<div class="trio">{shots}</div>'


def _settings(columns: Sequence[Column]) -> str:
    """Only what differs: short values in a table, long ones as lists of who has them."""
    keys = list(dict.fromkeys(key for column in columns for key in column.settings))
    shown = {key: [_setting(column.settings.get(key)) for column in columns] for key in keys}
    differing = {key: values for key, values in shown.items() if len(set(values)) > 1}
    if not differing:
        return ""
    short = {key: values for key, values in differing.items() if max(map(len, values)) <= _SHORT}
    long = "".join(_grouped(columns, key, values) for key, values in differing.items() if key not in short)
    return (
        '<section id="settings"><h2>Settings</h2>\n<p class="lead">Those in which the recipes differ; all others are '
        f"the same.</p>\n{_table(columns, short)}{long}</section>\n"
    )


def _setting(value: Any) -> str:
    """As a recipe writes it, but for the quotation marks of a text that stands alone."""
    if value is None or value in ("", [], {}, ()):
        return "–"
    shown = toml(value) or "–"
    return shown[1:-1] if isinstance(value, str) else shown


def _table(columns: Sequence[Column], values: Mapping[str, Sequence[str]]) -> str:
    if not values:
        return ""
    rows = []
    for place, column in enumerate(columns):
        cells = "".join(f"<td>{text(own[place])}</td>" for own in values.values())
        rows.append(f'<tr><th scope="row">{column.link}</th>{cells}</tr>\n')
    return (
        '<div class="scroll"><table class="overview differing"><thead><tr><th scope="col">Recipe</th>'
        f"{_heads([_wrapping(key) for key in values])}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _wrapping(key: str) -> str:
    return text(key).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _grouped(columns: Sequence[Column], key: str, values: Sequence[str]) -> str:
    groups: dict[str, list[str]] = {}
    for column, value in zip(columns, values, strict=True):
        groups.setdefault(value, []).append(text(column.name))
    parts = "".join(
        f"<dt>{', '.join(names)}</dt><dd><pre>{text(value)}</pre></dd>\n" for value, names in groups.items()
    )
    return f'<h3>{_wrapping(key)}</h3>\n<dl class="values">{parts}</dl>\n'


def flattened(
    settings: Mapping[str, Mapping[str, Any]], folders: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """The settings by dotted name, with the picture sets first."""
    for kind, regularisation in (("source", False), ("regularisation", True)):
        own = [folder for folder in folders if folder["regularisation"] is regularisation]
        yield kind, ", ".join(f"{folder['name']} × {folder['repeats']}" for folder in own)
    for section, values in settings.items():
        for key, value in values.items():
            if (section, key) != ("sample", "prompts"):
                yield f"{section}.{key}", json.loads(json.dumps(value))
