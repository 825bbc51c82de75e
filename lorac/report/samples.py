"""The sample grid: a row of pictures for each prompt, a column for each strength."""

from __future__ import annotations

from collections.abc import Sequence

from lorac.report.content import Row
from lorac.report.markup import image, image_size, text

_ENLARGED = 2  # at most so many times their size, or small pictures turn to mush


def column_name(strength: float) -> str:
    """ "off" for 0, else the number as a web UI writes it: "0.5", "1.0"."""
    return "off" if strength == 0 else str(float(strength))


def spoken_strength(strength: float) -> str:
    """The same in a sentence."""
    return "LoRA off" if strength == 0 else f"strength {column_name(strength)}"


def nearest(preferred: float | None, strengths: Sequence[float]) -> float | None:
    """The drawn strength that is the preferred weight or comes closest, of two the weaker; None if there is none."""
    drawn = [strength for strength in strengths if strength]
    if preferred is None or not drawn:
        return None
    return min(drawn, key=lambda strength: (abs(strength - preferred), abs(strength)))


def preferred_mark(strength: float, preferred: float | None, strengths: Sequence[float]) -> str:
    """What stands beside the strength that shows the preferred weight."""
    if not strength or preferred is None or strength != nearest(preferred, strengths):
        return ""
    said = "preferred" if strength == preferred else f"nearest to the preferred {column_name(preferred)}"
    return f'<span class="pill">{said}</span>'


def sample_section(rows: Sequence[Row], strengths: Sequence[float], preferred: float | None = None) -> str:
    """The section, or nothing without rows. Raises ValueError where a row has more or fewer pictures than strengths."""
    if not rows:
        return ""
    if not strengths:
        raise ValueError("sample rows without strengths")
    negatives = {row.negative for row in rows}
    shared = rows[0].negative if len(negatives) == 1 else ""
    width = max(image_size(first)[0] for row in rows for first in row.firsts) * _ENLARGED * len(strengths)
    heads = "".join(
        f'<th scope="col">{column_name(strength)}{preferred_mark(strength, preferred, strengths)}</th>'
        for strength in strengths
    )
    bodies = "".join(_row(row, strengths, row.negative if len(negatives) > 1 else "") for row in rows)
    return (
        '<section id="samples"><h2>Samples</h2>\n'
        '<p class="lead">Each prompt without the LoRA and at each strength, from the same noise.</p>\n'
        f"{negative_note(shared)}"
        f'<div class="scroll"><table class="samples" style="--columns:{len(strengths)};max-width:{width}px">\n'
        f"<thead><tr>{heads}</tr></thead>\n{bodies}</table></div></section>\n"
    )


def _row(row: Row, strengths: Sequence[float], negative: str) -> str:
    prompt = shown_prompt(row.prompt)
    cells = "".join(
        f"<td>{image(first, f'{prompt}; {spoken_strength(strength)}')}</td>"
        for strength, first in zip(strengths, row.firsts, strict=True)
    )
    return (
        f'<tbody><tr><th colspan="{len(strengths)}" scope="rowgroup" dir="auto">{text(prompt)}{negative_note(negative)}'
        f"</th></tr>\n<tr>{cells}</tr></tbody>\n"
    )


def shown_prompt(prompt: str) -> str:
    """A prompt, or what stands for an empty one."""
    return prompt or "(empty prompt)"


def negative_note(negative: str) -> str:
    """The negative prompt below a prompt; nothing if it is empty."""
    return f'<p class="note" dir="auto">Negative prompt: {text(negative)}</p>\n' if negative else ""
