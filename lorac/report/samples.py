"""The sample grid: a row of pictures for each prompt, a column for each strength."""

from __future__ import annotations

from collections.abc import Sequence

from lorac.report.content import Row
from lorac.report.markup import image, png_size, text

_ENLARGED = 2  # at most so many times their size, or small pictures turn to mush


def column_name(strength: float) -> str:
    """ "off" for 0, else the number as a web UI writes it: "0.5", "1.0"."""
    return "off" if strength == 0 else str(float(strength))


def sample_section(rows: Sequence[Row], strengths: Sequence[float]) -> str:
    """The section, or nothing without rows.

    A strip stays one picture, shown as wide as the table, whose equal columns therefore lie above its parts.
    """
    if not rows:
        return ""
    if not strengths:
        raise ValueError("sample rows without strengths")
    negatives = {row.negative for row in rows}
    shared = rows[0].negative if len(negatives) == 1 else ""
    names = [column_name(strength) for strength in strengths]
    width = max(png_size(row.png)[0] for row in rows) * _ENLARGED
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    bodies = "".join(_row(row, names, row.negative if len(negatives) > 1 else "") for row in rows)
    return (
        '<section id="samples"><h2>Samples</h2>\n'
        '<p class="lead">Each prompt without the LoRA and at each strength, from the same noise.</p>\n'
        f"{_negative(shared)}"
        f'<div class="scroll"><table class="samples" style="--columns:{len(names)};max-width:{width}px">\n'
        f"<thead><tr>{heads}</tr></thead>\n{bodies}</table></div></section>\n"
    )


def _row(row: Row, names: Sequence[str], negative: str) -> str:
    prompt = row.prompt or "(empty prompt)"
    columns = ", ".join("LoRA off" if name == "off" else f"strength {name}" for name in names)
    span = f'colspan="{len(names)}"'
    strip = image(row.png, f"{prompt}; left to right: {columns}")
    return (
        f'<tbody><tr><th {span} scope="rowgroup" dir="auto">{text(prompt)}{_negative(negative)}</th></tr>\n'
        f'<tr><td {span}><div class="strip">{strip}</div></td></tr></tbody>\n'
    )


def _negative(negative: str) -> str:
    return f'<p class="note" dir="auto">Negative prompt: {text(negative)}</p>\n' if negative else ""
