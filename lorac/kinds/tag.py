"""A picture without a caption becomes the raw probabilities of all tags: thresholds and rules come later.

The tagger looks at the whole picture, on white, as WD14 was trained, and not at what is trained of it. A picture
beside which there is a text is not looked at, and has empty probabilities.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lorac.digest import digest
from lorac.engine.protocol import Failed, Made, Work
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Shape
from lorac.kinds.image import Refused, decode
from lorac.kinds.source import ABSENT
from lorac.listing import shown_path
from lorac.tagger.vocabulary import read_tags

if TYPE_CHECKING:
    from lorac.tagger.model import Tagger

NAME = "tag"
VERSION = 2
SHAPE = Shape.EACH
POOL = "cpu"
OUTPUTS = ("probabilities",)

BEHIND = "white"
"""What WD14 sees where a picture is transparent, whatever is trained there."""
WRITTEN = b""
"""The probabilities of a picture that has a text."""


def run(work: Work) -> Iterable[Made | Failed]:
    for item in work.items:
        if item.inputs.get("caption", ABSENT) != ABSENT:
            yield Made(item.index, {"probabilities": WRITTEN})
            continue
        try:
            image = decode(work.read(item.inputs["picture"]), BEHIND)
        except Refused as refusal:
            cause, _, remedy = str(refusal).partition("; ")
            yield Failed(item.index, [Problem(shown_path(item.name), cause, remedy)])
            continue
        yield Made(item.index, {"probabilities": loaded(work).probabilities(image)})


def loaded(work: Work) -> Tagger:
    """The model, loaded once for all the workers of a node. Raises InputError."""
    from lorac.tagger.model import Tagger

    with work.session.setdefault("lock", threading.Lock()):
        if "tagger" not in work.session:
            path = Path(work.hints["model"])
            data = path.read_bytes()
            if digest(data) != work.shared["model"]:
                raise InputError([Problem(shown_path(path), "the file changed while it was read", "build again")])
            tags = read_tags(work.read(work.shared["tags"]), shown_path(work.hints["tags"]))
            work.session["tagger"] = Tagger(path, data, len(tags))
        found: Tagger = work.session["tagger"]
    return found
