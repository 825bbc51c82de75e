"""How the training went: the loss and the learning rates over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorac.report.chart import Line, chart
from lorac.report.content import Report
from lorac.report.markup import number, plural
from lorac.report.series import SMOOTHING, Point, mean, sampled, smoothed, thinned


def training_section(report: Report) -> str:
    """The section, or nothing without losses."""
    if not report.losses:
        return ""
    parts = f"{_loss(report)}{_validation(report)}{_learning_rate(report)}"
    return f'<section id="training"><h2>Training</h2>\n{parts}</section>\n'


def _loss(report: Report) -> str:
    steps = len(report.losses)
    series = _kinds(report)
    single = _finite(_by_step(report.losses))
    raw = thinned(single)
    together = math.ceil(len(single) / len(raw)) if raw else 1
    lines = [Line("each step" if together == 1 else f"mean of up to {together} steps", "raw", raw)]
    for name, style, points in series:
        finite = _finite(points)
        width = max(1.0, len(finite) * SMOOTHING)
        lines.append(Line(f"{name}, smoothed", style, sampled(smoothed(finite, width))))
    means = "; ".join(f"{name} {number(mean([y for _, y in points]))}" for name, _, points in series)
    figure = chart(lines, steps, f"Loss over {plural(steps, 'step')}. Means: {means}.", report.epoch_ends)
    return f"<h3>Loss</h3>\n{figure}{_means(series)}"


def _by_step(values: Sequence[float]) -> list[Point]:
    """(step, value), with steps counted from 1."""
    return [(float(step), value) for step, value in enumerate(values, 1)]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _kinds(report: Report) -> list[tuple[str, str, list[Point]]]:
    """Name, style and losses of the two kinds of steps, or of all where the kinds are unknown or only one occurs."""
    points = _by_step(report.losses)
    kinds = list(zip(points, report.regularisation_steps or [False] * len(points), strict=True))
    training = [point for point, regularisation in kinds if not regularisation]
    regularised = [point for point, regularisation in kinds if regularisation]
    if not training or not regularised:
        return [("all pictures", "first", points)]
    return [("training pictures", "first", training), ("regularisation pictures", "second", regularised)]


def _means(series: Sequence[tuple[str, str, Sequence[Point]]]) -> str:
    """Mean losses of each kind over its first and last tenth and over the whole run."""
    rows = []
    for name, _, points in series:
        values = [y for _, y in points]
        tenth = max(1, len(values) // 10)
        cells = "".join(f"<td>{mean(part):.4f}</td>" for part in (values[:tenth], values[-tenth:], values))
        rows.append(f'<tr><th scope="row">{name.capitalize()}</th><td>{number(len(values))}</td>{cells}</tr>\n')
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Steps", "First tenth", "Last tenth", "Whole run"))
    return (
        '<div class="scroll"><table class="figures"><caption>Mean loss</caption>\n'
        f'<thead><tr><th scope="col">Shown</th>{heads}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>\n'
    )


def _validation(report: Report) -> str:
    """Losses of pictures that were held out, without the LoRA and after each part of the training."""
    if not report.validation:
        return ""
    losses = [report.validation[0]["base"], *(losses["lora"] for losses in report.validation)]
    names = ["Without the LoRA", *(f"After step {number(step)}" for step in report.epoch_ends)]
    best = min(losses)
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{loss:.4f}{" (lowest)" if loss == best else ""}</td></tr>\n'
        for name, loss in zip(names, losses, strict=True)
    )
    return (
        '<div class="scroll"><table class="figures"><caption>Loss of held-out pictures</caption>\n'
        '<thead><tr><th scope="col">LoRA</th><th scope="col">Mean loss</th></tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _learning_rate(report: Report) -> str:
    rates = [("U-Net", "first", report.unet_lr), ("text encoder", "second", report.text_lr)]
    if list(report.unet_lr) == list(report.text_lr):
        rates = [("U-Net and text encoder", "first", report.unet_lr)]
    lines = [Line(name, style, sampled(_by_step(values))) for name, style, values in rates if len(values)]
    if not lines:
        return ""
    peaks = "; ".join(f"{name} at most {number(max(values))}" for name, _, values in rates if len(values))
    steps = max(len(values) for _, _, values in rates)
    figure = chart(lines, steps, f"Learning rate over {plural(steps, 'step')}: {peaks}.", style="chart low")
    return f"<h3>Learning rate</h3>\n{figure}"
