"""What one build did: what was made and what was found, how long it took, with which versions.

Unlike report.html this page holds times, so every build writes it anew. It is made of what build.json says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorac.report.graph import ABOUT, drawing, reduced
from lorac.report.markup import document, number, plural, text

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def build_page(facts: Mapping[str, Any], reads: Mapping[str, Sequence[str]]) -> bytes:
    """The page as UTF-8. `facts` are those of build.json, `reads` says what each kind of the graph reads."""
    name = text(facts["recipe"])
    body = (
        f'<header><p class="origin">What the last build did</p>\n<h1 dir="auto">{name}</h1>\n'
        f'<p class="comment">{_verdict(facts)}</p>\n{_totals(facts)}\n'
        '<nav><a href="report.html">Report</a> <a href="build.json">The same as JSON</a></nav>\n</header>\n'
        f"<main>\n{_graph(facts, reads)}{_files(facts['outputs'])}{_versions(facts['versions'])}</main>\n"
        "<footer><p>Written by lorac after each build. Seconds of a kind are those from its first item to its last: "
        "kinds run side by side. The whole build is that of all recipes that were built together, others than this one "
        "among them. Found or equal: there before, or with the same content as an item that was made. "
        "Memory is measured, not planned. "
        '<a href="report.html">Back to the report</a>.</p></footer>\n'
    )
    return document(f"Build of {facts['recipe']}", body)


def _verdict(facts: Mapping[str, Any]) -> str:
    if not facts["runs"]:
        return "Nothing had changed: everything was found."
    made = [kind for kind, entry in facts["kinds"].items() if entry["runs"]]
    if not facts["hits"]:
        return f"{plural(facts['runs'], 'item')} made; nothing was there before."
    found = number(facts["hits"])
    return (
        f"{plural(facts['runs'], 'item')} made, of {plural(len(made), 'kind')}; {found} more were there before "
        "or are equal to one that was made."
    )


def _totals(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    shown = {
        "the whole build, all its recipes": duration(facts["seconds"]),
        "made": number(facts["runs"]),
        "found or equal": number(facts["hits"]),
    }
    if training.get("steps"):
        shown["steps trained"] = number(training["steps"])
        if "steps_per_second" in training:
            shown["steps a second"] = f"{training['steps_per_second']:.2f}"
        if "trained_together" in training:
            shown["LoRAs trained together"] = number(len(training["trained_together"]))
            shown["steps a second of all of them"] = f"{training['lora_steps_per_second']:.2f}"
        shown["in training"] = duration(training["seconds"])
    if training.get("peak_bytes"):
        shown["peak memory in training, measured"] = size(training["peak_bytes"])
    pairs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in shown.items())
    return f'<dl class="facts headline wide">{pairs}</dl>'


def _graph(facts: Mapping[str, Any], reads: Mapping[str, Sequence[str]]) -> str:
    kinds: Mapping[str, Mapping[str, float]] = facts["kinds"]
    items = {kind: int(entry["runs"] + entry["hits"]) for kind, entry in kinds.items()}
    ran = {kind: int(entry["runs"]) for kind, entry in kinds.items()}
    longest = max((entry["seconds"] for entry in kinds.values()), default=0.0)
    fewer = reduced(reads)
    rows = "".join(_row(kind, kinds.get(kind), longest, own=kind in reads) for kind in fewer)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Kind", "Made", "Found or equal", "Seconds"))
    return (
        '<section id="graph"><h2>Graph</h2>\n<p class="lead">Outlined in blue is what had to be made.</p>\n'
        f'<div class="graphs">{drawing(fewer, items, ran)}<table class="kinds times"><thead><tr>{heads}</tr>'
        f"</thead>\n<tbody>{rows}</tbody></table></div></section>\n"
    )


def _row(kind: str, entry: Mapping[str, float] | None, longest: float, *, own: bool) -> str:
    """`own`: whether the kind is in this graph, or only read by it, as the trainings by a comparison."""
    head = f'<th scope="row" title="{ABOUT.get(kind, "")}">{text(kind)}</th>'
    if entry is None:
        said = "looked at in every build" if own else "on the pages of the recipes"
        return f'<tr class="faint">{head}<td colspan="3">{said}</td></tr>\n'
    share = entry["seconds"] / longest if longest else 0.0
    bar = f'<span class="bar" style="width:calc((100% - 6rem)*{share:.4f})"></span>' if entry["runs"] else ""
    shown = duration(entry["seconds"]) if entry["runs"] else ""
    faint = "" if entry["runs"] else ' class="faint"'
    return (
        f"<tr{faint}>{head}<td>{number(entry['runs'])}</td><td>{number(entry['hits'])}</td>"
        f'<td>{bar}<span class="count">{shown}</span></td></tr>\n'
    )


def _files(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    if not outputs:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><bdi>{text(name)}</bdi></th><td>{size(one["bytes"])}</td>'
        f"<td><code>{text(one['sha256'])}</code></td></tr>\n"
        for name, one in outputs.items()
    )
    return (
        '<section id="files"><h2>Files</h2>\n<table class="kinds files"><thead><tr><th scope="col">File</th>'
        f'<th scope="col">Size</th><th scope="col">SHA-256</th></tr></thead>\n<tbody>{rows}</tbody></table></section>\n'
    )


def _versions(versions: Mapping[str, str]) -> str:
    items = "".join(f"<li>{text(name)} {text(version)}</li>" for name, version in versions.items())
    return f'<section id="versions"><h2>Versions</h2>\n<ul class="chips">{items}</ul></section>\n'


def duration(seconds: float) -> str:
    """ "0.03 s", "4.2 s", "12 min 05 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """ "812 bytes", "13.7 MiB"."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[0]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"
