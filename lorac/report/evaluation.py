"""The article's table: for each prompt and strength the pictures, with what a tagger sees in them beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorac.evaluate.figures import Cell, Figures, HeldOut, Leaked, Measure
from lorac.evaluate.trade_off import best
from lorac.report.content import Row
from lorac.report.dots import Point, dot, dumbbell, panel
from lorac.report.markup import image, number, percent, plural, text
from lorac.report.measures import MEANINGS, SHOWN, TRADE_OFF
from lorac.report.samples import column_name, nearest, negative_note, preferred_mark, shown_prompt, spoken_strength

MOST_LEAKED = 12
"""Tags in the table of what leaked."""
_LEAKED_BESIDE = 3
"""Tags beside the pictures of one prompt."""
_FAINT = 0.005
"""What is shown as 0 % is grey."""


def evaluation_section(figures: Figures | None, rows: Sequence[Row]) -> str:
    """The section, or nothing without figures."""
    if figures is None:
        return ""
    prompts = len(figures.prompts)
    return (
        '<section id="evaluation"><h2>Evaluation</h2>\n'
        f'<p class="lead">What the tagger sees in {plural(figures.count, "picture")} of '
        f"{'the prompt' if prompts == 1 else f'each of {prompts} prompts'} at each strength.</p>\n"
        f"{_nobody(figures)}{_by_strength(figures)}{definitions()}{_character(figures)}{_leaks(figures)}"
        f"{_table(figures, rows)}"
        "</section>\n"
    )


def definitions() -> str:
    """How each figure is defined, folded."""
    terms = "".join(
        f"<dt>{meaning.label} <i>{meaning.direction}</i></dt><dd>{meaning.definition}</dd>\n"
        for meaning in [*(MEANINGS[name] for name in SHOWN), TRADE_OFF]
    )
    return (
        '<details class="reading"><summary>How to read this</summary>\n'
        "<p>A dot is the figure, on a line from 0 to 100&nbsp;%. The line through it is its 95&nbsp;% interval: where "
        "the figure might as well lie, had other noise been drawn. A grey tick is the same figure without the LoRA. "
        '<span class="good">Blue</span> figures should be high, <span class="bad">orange</span> ones low.</p>\n'
        f"<dl>{terms}</dl></details>\n"
    )


def _nobody(figures: Figures) -> str:
    """Why figures are missing where no tags make the character."""
    if figures.identity:
        return ""
    chosen = figures.preferred_weight is not None
    missing = "no likeness and no trade-off" if chosen else "no likeness, no trade-off and no preferred weight"
    return (
        f'<p class="note">There is {missing}: nothing says what makes the character. Set '
        "<code>evaluate.character</code> to tags that the tagger knows, or exclude the character's tags in "
        "<code>[caption]</code>: those count that the tagger sees in at least half of the training pictures.</p>\n"
    )


def _by_strength(figures: Figures) -> str:
    """A panel for each measure, and one for the trade-off between them."""
    preferred = figures.preferred_weight
    shaded = nearest(preferred, figures.strengths)
    marked = None if shaded is None else figures.strengths.index(shaded)
    names = [column_name(strength) for strength in figures.strengths]
    panels = [
        panel(
            MEANINGS[name].label,
            MEANINGS[name].direction,
            [_point(label, whole.measures.get(name)) for label, whole in zip(names, figures.overall, strict=True)],
            MEANINGS[name].style,
            marked,
        )
        for name in SHOWN
    ]
    if figures.trade_off:
        scores = {score.strength: score.score for score in figures.trade_off}
        points = [Point(name, scores.get(at)) for name, at in zip(names, figures.strengths, strict=True)]
        panels.append(panel(TRADE_OFF.label, TRADE_OFF.direction, points, "whole", marked))
    chosen = ""
    if preferred is not None and shaded is not None:
        which = "" if shaded == preferred else f"{column_name(shaded)}, the drawn strength nearest to "
        found = "has the best trade-off" if preferred == best(figures.trade_off) else "is the recipe's"
        chosen = f", shaded {which}the preferred weight, {column_name(preferred)}, which {found}"
    return (
        f'<h3>By strength <span class="note">all prompts together{chosen}</span></h3>\n'
        f'<div class="panels">\n{"".join(panels)}</div>\n'
    )


def _point(name: str, measure: Measure | None) -> Point:
    return Point(name, measure.value, measure.low, measure.high) if measure else Point(name, None)


def _character(figures: Figures) -> str:
    parts = []
    if figures.identity:
        chips = "".join(f"<li>{text(tag)}</li>" for tag in figures.identity)
        parts.append(f'<h3>What makes the character</h3>\n<ul class="chips" dir="auto">{chips}</ul>\n')
    if held := figures.held_out:
        parts.append(
            f"<h3>Held-out loss</h3>\n<p>{held.lora:.4f} with the LoRA, {held.base:.4f} without "
            f"({held_out_change(held, 1)}), over {plural(held.count, 'picture')} that it was not trained on.</p>\n"
        )
    return "".join(parts)


def held_out_change(held: HeldOut, digits: int = 0) -> str:
    """How far the LoRA takes the loss from that of the base: "−15 %"."""
    change = 100 * (held.lora / held.base - 1) if held.base else 0.0
    return f"{change:+.{digits}f}&nbsp;%".replace("-", "−")


def _leaks(figures: Figures) -> str:
    """Tags by strengths: what appears unasked more often than without the LoRA."""
    drawn = [whole for whole in figures.overall if whole.strength]
    by_tag: dict[str, dict[float, Leaked]] = {}
    for whole in drawn:
        for leaked in whole.leaked:
            by_tag.setdefault(leaked.tag, {})[whole.strength] = leaked
    if not by_tag:
        return ""
    order = sorted(by_tag, key=lambda tag: (-max(one.rate - one.without for one in by_tag[tag].values()), tag))
    heads = "".join(f'<th scope="col">{column_name(whole.strength)}</th>' for whole in drawn)
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{text(tag)}</th>'
        f"{''.join(_leak(by_tag[tag].get(whole.strength)) for whole in drawn)}</tr>\n"
        for tag in order[:MOST_LEAKED]
    )
    rest = len(order) - MOST_LEAKED
    more = f'<p class="note">… and {plural(rest, "more tag")}.</p>\n' if rest > 0 else ""
    return (
        '<h3>What leaked <span class="note">tags of the training pictures that nobody asked for, '
        "with the LoRA (dot) and without (tick)</span></h3>\n"
        f'<table class="leaks"><thead><tr><th scope="col">Tag</th>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table>\n{more}"
    )


def _leak(leaked: Leaked | None) -> str:
    if leaked is None:
        return '<td class="none">–</td>'
    return f"<td>{dumbbell(leaked.rate, leaked.without, leaked.tag)}<span>{percent(leaked.rate)}</span></td>"


def _table(figures: Figures, rows: Sequence[Row]) -> str:
    """Each prompt with a line of pictures and figures for each strength."""
    parts = ['<h3>Prompt by prompt</h3>\n<div class="prompts">\n']
    negatives = {prompt.negative for prompt in figures.prompts}
    if len(negatives) == 1:
        parts.append(negative_note(figures.prompts[0].negative))
    for index, prompt in enumerate(figures.prompts):
        cells = [cell for cell in figures.cells if cell.prompt == index]
        without = next((cell for cell in cells if cell.strength == 0), None)
        sheets = rows[index].sheets if index < len(rows) else ()
        parts.append(
            f'<article class="prompt"><h4 dir="auto">{text(shown_prompt(prompt.prompt))}</h4>\n'
            f"{negative_note(prompt.negative if len(negatives) > 1 else '')}"
        )
        for place, cell in enumerate(cells):
            pictures = sheets[place] if place < len(sheets) else ()
            parts.append(_cell(figures, cell, pictures, without if cell is not without else None))
        parts.append("</article>\n")
    return "".join([*parts, "</div>\n"])


def _cell(figures: Figures, cell: Cell, pictures: Sequence[bytes], without: Cell | None) -> str:
    mark = preferred_mark(cell.strength, figures.preferred_weight, figures.strengths)
    name = "off" if cell.strength == 0 else f"<span>strength </span>{column_name(cell.strength)}"
    shots = "".join(image(picture, "") for picture in pictures)
    what = f"{number(len(pictures))} pictures, {spoken_strength(cell.strength)}"
    figure_rows = "".join(_measures(cell, without))
    return (
        f'<div class="cell{" chosen" if mark else ""}"><h5>{name}{mark}</h5>'
        f'<div class="shots" role="img" aria-label="{text(what)}">{shots}</div>'
        f'<div class="beside"><table class="measures"><tbody>{figure_rows}</tbody></table>{_beside(cell)}</div></div>\n'
    )


def _measures(cell: Cell, without: Cell | None) -> Iterator[str]:
    for name in SHOWN:
        meaning, measure = MEANINGS[name], cell.measures.get(name)
        head = f'<th scope="row">{meaning.label}</th>'
        if measure is None:
            yield f'<tr class="faint">{head}<td></td><td>–</td></tr>'
            continue
        drawn = dot(measure, meaning.style, without.measures.get(name) if without else None, meaning.label)
        faint = ' class="faint"' if measure.value < _FAINT else ""
        yield f"<tr{faint}>{head}<td>{drawn}</td><td>{percent(measure.value)}</td></tr>"


def _beside(cell: Cell) -> str:
    worst = [leaked for leaked in cell.leaked if leaked.rate > leaked.without][:_LEAKED_BESIDE]
    if not worst or not cell.strength:
        return ""
    said = ", ".join(f"{leaked.tag} {percent(leaked.rate)} (without: {percent(leaked.without)})" for leaked in worst)
    return f'<p class="note" dir="auto">Leaks: {text(said)}</p>'
