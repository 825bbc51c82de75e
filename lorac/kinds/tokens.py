"""A final caption becomes CLIP's token numbers, tag by tag, so that shuffling tags never tokenises again.

BPE never joins pieces across white space, so the tokens of "a, b, c" are those of "a,", "b," and "c" in turn.
The output is JSON: for each tag [tokens of "tag,", tokens of "tag"]. Where the recipe allows marks or choices, it is
{"lines": [[[start, end, tags], …], …]}: for each line its variants, with how many of their tags are kept at the start
(null: keep_tokens says it) and at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lorac.captions import split_tags
from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import Problem
from lorac.graph.nodes import Shape
from lorac.listing import shown_path
from lorac.wildcards import showings

NAME = "tokens"
VERSION = 1
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("tokens",)


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.sd.tokenizer import Tokenizer

    encode = Tokenizer().encode
    known: dict[str, list[list[int]]] = {}

    def pairs(tags: Iterable[str]) -> list[list[list[int]]]:
        for tag in tags:
            if tag not in known:
                known[tag] = [encode(f"{tag},"), encode(tag)]
        return [known[tag] for tag in tags]

    texts = work.read_many([item.inputs["caption"] for item in work.items])
    for item in work.items:
        text = texts[item.inputs["caption"]].decode()
        tokens: object = pairs(split_tags(text)) if not work.params else None
        if work.params:
            try:
                lines = showings(text, **work.params)
            except ValueError as error:
                cause, _, remedy = str(error).partition("; ")
                file = Path(item.name).with_suffix(work.hints["extension"])
                yield Failed(item.index, [Problem(shown_path(file), f"the caption {cause}", remedy)])
                continue
            tokens = {"lines": [[[shown.start, shown.end, pairs(shown.tags)] for shown in line] for line in lines]}
        yield Made(item.index, {"tokens": json.dumps(tokens, separators=(",", ":")).encode()})
