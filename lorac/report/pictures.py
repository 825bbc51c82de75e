"""The data set: every training picture with its caption, and how often each tag occurs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from lorac.report.content import Folder, LeftOut, Picture
from lorac.report.markup import image, number, plural, text

MOST_PICTURES = 200
"""Of one training folder: a page with more pictures is of no use, and slow."""
MOST_REGULARISATION = 60
MOST_TAGS = 30


def picture_section(folders: Sequence[Folder], pictures: Sequence[Picture], left_out: Sequence[LeftOut] = ()) -> str:
    """The section, or nothing without pictures."""
    training = [picture for picture in pictures if not picture.regularisation]
    regularisation = [picture for picture in pictures if picture.regularisation]
    if not pictures:
        return ""
    return (
        f'<section id="pictures"><h2>Pictures</h2>\n'
        f"{_by_folder([folder for folder in folders if not folder.regularisation], training)}"
        f"{_tag_table(training)}{_left_out(left_out, len(training))}"
        f"{_regularisation([folder for folder in folders if folder.regularisation], regularisation)}</section>\n"
    )


def tag_counts(pictures: Sequence[Picture]) -> list[tuple[str, int]]:
    """In how many captions each tag occurs, the most frequent first, equals in alphabetical order."""
    counts = Counter(tag for picture in pictures for tag in set(picture.tags))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _shared_tags(pictures: Sequence[Picture]) -> frozenset[str]:
    """The tags of every caption: grey, they leave in sight what tells the pictures apart."""
    captions = [frozenset(picture.tags) for picture in pictures]
    return frozenset.intersection(*captions) if len(captions) > 1 else frozenset()


def _by_folder(folders: Sequence[Folder], pictures: Sequence[Picture]) -> str:
    parts = []
    for name in dict.fromkeys([*(folder.name for folder in folders), *(picture.folder for picture in pictures)]):
        facts = "; ".join(_facts(folder) for folder in folders if folder.name == name)
        members = [picture for picture in pictures if picture.folder == name]
        shared = _shared_tags(members)
        hint = "tags of every picture in grey" if shared else ""
        note = "; ".join(filter(None, (facts, hint)))
        cards = "".join(_card(picture, shared) for picture in members[:MOST_PICTURES])
        parts.append(
            f'<h3><bdi>{text(name)}</bdi> <span class="note">{note}</span></h3>\n<div class="sheet">\n{cards}</div>\n'
            f"{_more(len(members) - MOST_PICTURES)}"
        )
    return "".join(parts)


def _facts(folder: Folder) -> str:
    return f"{plural(folder.count, 'picture')}, each {plural(folder.repeats, 'time')} an epoch"


def _card(picture: Picture, shared: Collection[str] = ()) -> str:
    parts = re.findall("[^,]*,|[^,]+", picture.caption)
    caption = "".join(
        f'<span class="shared">{text(part)}</span>' if part.strip(", ") in shared else text(part) for part in parts
    )
    return (
        f'<figure class="card">{image(picture.image, picture.name)}<figcaption>'
        f'<p dir="auto">{caption or "<i>empty caption</i>"}</p><p class="note"><bdi>{text(picture.name)}</bdi>, '
        f"{picture.width}&nbsp;&times;&nbsp;{picture.height}</p></figcaption></figure>\n"
    )


def _regularisation(folders: Sequence[Folder], pictures: Sequence[Picture]) -> str:
    total = max(len(pictures), sum(folder.count for folder in folders))
    if not total:
        return ""
    shown = pictures[:MOST_REGULARISATION]
    more = _more(total - len(shown))
    names = ", ".join(dict.fromkeys(folder.name for folder in folders))
    return (
        f"<details><summary>{plural(total, 'regularisation picture')}"
        f"{f' from <bdi>{text(names)}</bdi>' if names else ''}</summary>\n"
        f'<div class="sheet small">\n{"".join(_card(picture) for picture in shown)}</div>\n{more}</details>\n'
    )


def _more(rest: int) -> str:
    return f'<p class="note">… and {number(rest)} more.</p>\n' if rest > 0 else ""


def _tag_table(pictures: Sequence[Picture]) -> str:
    counts = tag_counts(pictures)
    if not counts:
        return ""
    rows = "".join(_tag_row(tag, count, len(pictures)) for tag, count in counts[:MOST_TAGS])
    rest = len(counts) - MOST_TAGS
    more = f'<p class="note">… and {plural(rest, "more tag")}.</p>\n' if rest > 0 else ""
    return (
        f'<h3>Tags <span class="note">in the captions of {plural(len(pictures), "training picture")}</span></h3>\n'
        '<div class="columns"><table class="tags"><thead><tr><th scope="col">Tag</th>'
        f'<th scope="col">Pictures</th></tr></thead>\n<tbody>{rows}</tbody></table></div>\n{more}'
    )


def _left_out(tags: Sequence[LeftOut], total: int) -> str:
    """What the texts have and the captions do not."""
    if not tags or not total:
        return ""
    rows = "".join(
        _tag_row(f"{one.tag} → {one.replaced}" if one.replaced else one.tag, one.count, total)
        for one in tags[:MOST_TAGS]
    )
    rest = len(tags) - MOST_TAGS
    more = f'<p class="note">… and {plural(rest, "more tag")}.</p>\n' if rest > 0 else ""
    return (
        '<h3>Left out by the rules <span class="note">what these tags name comes with the trigger words</span></h3>\n'
        '<div class="columns"><table class="tags left"><thead><tr><th scope="col">Tag</th>'
        f'<th scope="col">Pictures</th></tr></thead>\n<tbody>{rows}</tbody></table></div>\n{more}'
    )


def _tag_row(tag: str, count: int, total: int) -> str:
    share = f"{100 * count / total:.1f}".removesuffix(".0")
    return (
        f'<tr><th scope="row" dir="auto">{text(tag)}</th>'
        f'<td><span class="bar" style="width:{share}%"></span><span class="count">{number(count)}</span></td></tr>\n'
    )
