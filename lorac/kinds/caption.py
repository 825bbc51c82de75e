"""The text beside a picture becomes its final caption: the recipe's rules applied, tags joined by comma and space."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lorac.captions import Rules, decode_caption
from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.kinds.source import ABSENT
from lorac.listing import shown_path
from lorac.wildcards import final

NAME = "caption"
VERSION = 1
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("caption",)


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
    for item in work.items:
        absent = item.inputs["caption"] == ABSENT
        try:
            raw = params["fallback"] if absent else decode_caption(texts[item.inputs["caption"]], rules.wildcard)
        except ValueError as error:
            cause, _, remedy = str(error).partition("; ")
            file = Path(item.name).with_suffix(work.hints["extension"])
            yield Failed(item.index, [Problem(shown_path(file), f"the caption {cause}", remedy)])
            continue
        text = final(rules, raw)
        if not text and absent:
            remedy = f"write {work.hints['extension']} files beside the pictures, or give the source trigger words"
            yield Failed(item.index, [Problem(shown_path(item.name), "the picture has no caption", remedy)])
            continue
        yield Made(item.index, {"caption": text.encode()})
