"""The article's table: for each prompt, what each recipe makes of it, in pictures and in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorac.report.column import Column, Ground, Pair, Shown
from lorac.report.dots import spoken
from lorac.report.markup import image, percent, text
from lorac.report.measures import MEANINGS, SHOWN
from lorac.report.samples import column_name, nearest, negative_note, shown_prompt


def prompt_section(columns: Sequence[Column], common: Ground) -> str:
    """The section, or nothing without pictures. What most recipes drew comes first."""
    blocks: dict[Pair, list[tuple[Column, Shown]]] = {}
    for column in columns:
        for shown in column.prompts:
            blocks.setdefault((shown.prompt, shown.negative), []).append((column, shown))
    if not blocks:
        return ""
    order = sorted(blocks, key=lambda pair: -len(blocks[pair]))
    groups = "".join(_block(pair, blocks[pair], common) for pair in order)
    at = "its largest strength" if common.strength is None else f"strength {column_name(common.strength)}"
    figures = f" Figures are those of this prompt alone, at {at}." if common.columns else ""
    return (
        '<section id="prompts"><h2>Prompts</h2>\n<p class="lead">The first picture of each prompt at each strength, '
        f"from the same noise everywhere; shaded is the preferred weight.{figures}</p>\n{groups}</section>\n"
    )


def _block(pair: Pair, pairs: Sequence[tuple[Column, Shown]], common: Ground) -> str:
    """Pictures without the LoRA are shown once for all recipes that have the same."""
    cards, seen = [], set()
    for column, shown in pairs:
        if shown.off not in seen:
            seen.add(shown.off)
            cards.append(
                f'<figure class="versus"><figcaption>without a LoRA</figcaption>{_shots({0.0: shown.off})}</figure>'
            )
        chosen = nearest(column.preferred, list(shown.at))
        figures = _mini(column, pair, common) if column.strengths else ""
        cards.append(
            f'<figure class="versus"><figcaption>{column.link}{_elsewhere(column.preferred, chosen)}</figcaption>'
            f"{_shots(shown.at, chosen)}{figures}</figure>"
        )
    prompt, negative = pair
    return (
        f'<h3 dir="auto">{text(shown_prompt(prompt))}</h3>\n{negative_note(negative)}'
        f'<div class="versuses">\n{"".join(cards)}</div>\n'
    )


def _elsewhere(preferred: float | None, chosen: float | None) -> str:
    """Where the preferred weight itself was not drawn."""
    if preferred is None or chosen in (None, preferred):
        return ""
    return f' <span class="note">preferred weight {column_name(preferred)} was not drawn; shaded: the nearest</span>'


def _shots(pictures: Mapping[float, bytes], chosen: float | None = None) -> str:
    shots = "".join(
        f"<div{' class=chosen' if at and at == chosen else ''}>{image(data, f'strength {column_name(at)}')}"
        f"<span>{column_name(at)}</span></div>"
        for at, data in pictures.items()
    )
    return f'<div class="trio">{shots}</div>'


def _mini(column: Column, pair: Pair, common: Ground) -> str:
    """All measures of one prompt in a small space."""
    measures = column.measures(pair, common.at(column))
    parts = []
    for name in SHOWN:
        measure = measures.get(name)
        said = f' title="{text(spoken(measure))}"' if measure else ""
        value = percent(measure.value) if measure else "–"
        parts.append(f"<div{said}><dt>{MEANINGS[name].label}</dt><dd>{value}</dd></div>")
    return f'<dl class="mini">{"".join(parts)}</dl>\n'
