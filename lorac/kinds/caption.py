"""The text beside a picture becomes its final caption: the recipe's rules applied, tags joined by comma and space.

With a tagger, what it saw stands for a text that is not there: its tags above their thresholds, the likeliest first.
What it saw nothing in has the recipe's words, if there are any.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lorac.captions import Rules, decode_caption
from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.kinds.source import ABSENT
from lorac.listing import shown_path
from lorac.tagger.vocabulary import Tag, Thresholds, caption, read_tags
from lorac.wildcards import final

NAME = "caption"
VERSION = 2
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("caption", "raw")
"""`raw` is the text before the rules: the report says what they left out."""


def run(work: Work) -> Iterable[Made | Failed]:
    params = work.params
    rules = Rules(
        trigger=tuple(params["trigger"]),
        exclude=tuple(params["exclude"]),
        replace=tuple((old, new) for old, new in params["replace"]),
        prefix=params["prefix"],
        suffix=params["suffix"],
        separator=params.get("separator", ""),
        wildcard=params.get("wildcard", False),
    )
    texts = work.read_many([item.inputs["caption"] for item in work.items])
    tags_of = _Tagged(work) if "tags" in work.shared else None
    for item in work.items:
        absent = item.inputs["caption"] == ABSENT
        try:
            if absent:
                raw = (tags_of(item) if tags_of else "") or params["fallback"]
            else:
                raw = decode_caption(texts[item.inputs["caption"]], rules.wildcard)
        except ValueError as error:
            cause, _, remedy = str(error).partition("; ")
            file = Path(item.name).with_suffix(work.hints["extension"])
            yield Failed(item.index, [Problem(shown_path(file), f"the caption {cause}", remedy)])
            continue
        text = final(rules, raw)
        if not text and absent:
            remedy = f"write {work.hints['extension']} files beside the pictures, or give the source trigger words"
            cause = "the picture has no caption"
            if tags_of:
                cause, remedy = "the tagger saw nothing above its threshold", f"lower tagger.threshold, or {remedy}"
            yield Failed(item.index, [Problem(shown_path(item.name), cause, remedy)])
            continue
        yield Made(item.index, {"caption": text.encode(), "raw": raw.encode()})


class _Tagged:
    """The tags of a picture that has no text, as a text."""

    def __init__(self, work: Work) -> None:
        self._read = work.read
        self._tags: tuple[Tag, ...] = read_tags(work.read(work.shared["tags"]), shown_path(work.hints["tags"]))
        self._thresholds = Thresholds(**work.params["thresholds"])

    def __call__(self, item: Item) -> str:
        return caption(self._tags, self._read(item.inputs["probabilities"]), self._thresholds)
