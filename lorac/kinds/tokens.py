"""A final caption becomes CLIP's token numbers, tag by tag, so that shuffling tags never tokenises again.

BPE never joins pieces across white space, so the tokens of "a, b, c" are those of "a,", "b," and "c" in turn.
The output is JSON: for each tag [tokens of "tag,", tokens of "tag"].
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from lorac.captions import split_tags
from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape

NAME = "tokens"
VERSION = 1
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("tokens",)


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.sd.tokenizer import Tokenizer

    encode = Tokenizer().encode
    known: dict[str, list[list[int]]] = {}
    texts = work.read_many([item.inputs["caption"] for item in work.items])
    for item in work.items:
        pairs = []
        for tag in split_tags(texts[item.inputs["caption"]].decode()):
            if tag not in known:
                known[tag] = [encode(f"{tag},"), encode(tag)]
            pairs.append(known[tag])
        yield Made(item.index, {"tokens": json.dumps(pairs, separators=(",", ":")).encode()})
