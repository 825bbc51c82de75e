"""Recipes side by side: their figures on equal prompts, the article's table, their losses, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorac.evaluate.figures import HeldOut, Measure
from lorac.report.column import Column, Ground, ground
from lorac.report.differences import settings_section
from lorac.report.dots import dot
from lorac.report.evaluation import definitions, held_out_change
from lorac.report.markup import document, number, percent, plural, text
from lorac.report.measures import MEANINGS, SHOWN
from lorac.report.overlay import loss_section
from lorac.report.samples import column_name, negative_note, shown_prompt, spoken_strength
from lorac.report.versus import prompt_section

_BRIEF = SHOWN[:4]
"""The figures of the overview."""


def compare_page(title: str, comment: str, columns: Sequence[Column]) -> bytes:
    """The page as UTF-8. Equal columns give equal bytes; the page loads nothing and runs no script."""
    common = ground(columns)
    sections = {
        "Recipes": _recipes(columns, common),
        "Figures": _figures(common),
        "Prompts": prompt_section(columns, common),
        "Loss": loss_section([(column.name, column.losses) for column in columns]),
        "Settings": settings_section(columns),
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


def _recipes(columns: Sequence[Column], common: Ground) -> str:
    """The overview: one line for each recipe, on what it shares with the others."""
    at = "" if common.strength is None else f" at {spoken_strength(common.strength)}"
    brief = [MEANINGS[name].label.capitalize() + at for name in _BRIEF]
    validated = any(column.held_out for column in common.columns)
    heads = ("Recipe", "Steps", *(["Held-out loss"] if validated else []), "Preferred weight", *brief)
    rows = "".join(_overview(column, common, validated=validated) for column in columns)
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    intervals = " Below each stands its 95&nbsp;% interval." if common.columns else ""
    if validated:
        intervals += (
            " Held-out loss: over pictures that were not trained, at strength 1.0, with the change from the base's in "
            "brackets; of recipes that hold out other pictures it is no comparison."
        )
    return (
        '<section id="recipes"><h2>Recipes</h2>\n<p class="lead">Each has a report of its own, over all of its prompts '
        f"and strengths. {_basis(common)}{intervals}</p>\n{_prompts(common)}"
        f'<div class="scroll"><table class="overview"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div></section>\n"
    )


def _basis(common: Ground) -> str:
    """Over which prompts and at which strength figures are."""
    if not common.columns:
        return ""
    if common.strength is None:
        at = "each at its own largest strength, for they share none"
    else:
        at = f"at strength {column_name(common.strength)}"
    if not common.prompts:
        return (
            f"They share no prompt: figures are over each recipe's own prompts, {at}, so what differs may be the "
            "prompts' doing."
        )
    which = "prompt" if len(common.prompts) == 1 else f"{number(len(common.prompts))} prompts"
    return f"Figures are over the {which} that all evaluated recipes share, {at}."


def _prompts(common: Ground) -> str:
    """The shared prompts by name."""
    if not common.prompts:
        return ""
    negatives = {negative for _, negative in common.prompts}
    items = "".join(
        f'<li dir="auto">{text(shown_prompt(prompt))}{negative_note(negative) if len(negatives) > 1 else ""}</li>'
        for prompt, negative in common.prompts
    )
    return f'<ul class="equal">{items}</ul>\n{negative_note(negatives.pop()) if len(negatives) == 1 else ""}'


def _overview(column: Column, common: Ground, *, validated: bool) -> str:
    said = f'<p class="note" dir="auto">{text(column.comment)}</p>' if column.comment else ""
    steps = number(len(column.losses)) if column.losses else ""
    rest = f'<td colspan="{1 + len(_BRIEF) + validated}" class="none">'
    if not column.losses:
        rest += "was not built (its training may have diverged: see the build's messages)</td>"
    elif not column.strengths:
        rest += "was not evaluated</td>"
    else:
        weight = "–" if column.preferred is None else column_name(column.preferred)
        if common.strength is None:
            weight += f"<i>figures at {column_name(common.at(column))}</i>"
        held = f"<td>{_held_out(column.held_out)}</td>" if validated else ""
        rest = f"{held}<td>{weight}</td>" + "".join(_digits(common.figure(name, column)) for name in _BRIEF)
    return f'<tr><th scope="row">{column.link}{said}</th><td>{steps}</td>{rest}</tr>\n'


def _held_out(held: HeldOut | None) -> str:
    return f"{held.lora:.4f} ({held_out_change(held)})" if held else "–"


def _digits(measure: Measure | None) -> str:
    if measure is None:
        return "<td>–</td>"
    return f"<td>{percent(measure.value)}<i>{100 * measure.low:.0f}–{100 * measure.high:.0f}</i></td>"


def _figures(common: Ground) -> str:
    """A panel for each measure, in it a line for each recipe."""
    if not common.columns:
        return ""
    panels = "".join(_panel(name, common) for name in SHOWN)
    return (
        f'<section id="figures"><h2>Figures</h2>\n<p class="lead">{_basis(common)} '
        "Lines through dots: 95&nbsp;% intervals. Grey ticks: without the LoRA.</p>\n"
        f'{definitions()}<div class="lanes">\n{panels}</div></section>\n'
    )


def _panel(name: str, common: Ground) -> str:
    meaning, used = MEANINGS[name], len(common.prompts_of(name))
    fewer = f", {used} of {plural(len(common.prompts), 'prompt')}" if 0 < used < len(common.prompts) else ""
    rows = "".join(_lanes(name, common))
    return (
        f'<table class="lane"><caption>{meaning.label} <span>{meaning.direction}{fewer}</span></caption>\n'
        f"<tbody>{rows}</tbody></table>\n"
    )


def _lanes(name: str, common: Ground) -> Iterable[str]:
    meaning = MEANINGS[name]
    for column in common.columns:
        found, drawn, digits = common.figure(name, column), "", "–"
        if found:
            drawn = dot(found, meaning.style, common.figure(name, column, without=True), meaning.label)
            digits = percent(found.value)
        yield f'<tr><th scope="row">{text(column.name)}</th><td>{drawn}</td><td>{digits}</td></tr>\n'
