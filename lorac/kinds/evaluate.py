"""The figures of a recipe: what its prompts give at each strength, beside what they give without the LoRA."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lorac.digest import Digest
from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.listing import shown_path
from lorac.tagger.vocabulary import read_tags

if TYPE_CHECKING:
    from lorac.evaluate.cells import Looks
    from lorac.evaluate.figures import HeldOut

NAME = "evaluate"
VERSION = 3
SHAPE = Shape.ONE
POOL = "cpu"
OUTPUTS = ("figures",)


def run(work: Work) -> Iterable[Made | Failed]:
    """`figures`: the JSON of `evaluate.figures`.

    Columns of `measure`: `seen.off` and `features.off` by prompt, `seen.on` and `features.on` by prompt and strength
    other than 0, `seen.N` and `features.N` of the N-th source's pictures. `tags`: the tagger's vocabulary. `losses`:
    the last of the held-out losses, `validation`: which pictures were held out.
    """
    from lorac.evaluate.cells import Evaluation, Source, evaluated
    from lorac.evaluate.figures import encode
    from lorac.evaluate.tags import Words

    params = work.params
    words = Words(read_tags(work.read(work.shared["tags"]), shown_path(work.hints["tags"])))
    off, on = (_looks(work, port, len(words.tags)) for port in ("off", "on"))
    each = len(params["strengths"])
    cells = [cell for p, without in enumerate(off) for cell in (without, *on[p * each : (p + 1) * each])]
    found = Evaluation(
        words=words,
        count=params["count"],
        threshold=params["threshold"],
        prompts=[(prompt["prompt"], prompt["negative"]) for prompt in params["prompts"]],
        strengths=[0.0, *params["strengths"]],
        cells=cells,
        sources=[
            Source(_together(_looks(work, str(number), len(words.tags))), source["trigger"], source["exclude"])
            for number, source in enumerate(params["sources"])
        ],
        character=params["character"],
        preferred=params["preferred_weight"],
        held_out=_held_out(work),
    )
    yield Made(0, {"figures": encode(evaluated(found))})


def _looks(work: Work, port: str, tags: int) -> list[Looks]:
    """What was measured for each item of a column, or nothing if there is no such column."""
    import numpy as np

    from lorac.evaluate.cells import Looks
    from lorac.evaluate.features import from_bytes

    def blobs(output: str) -> list[bytes]:
        column: Sequence[Digest] = work.columns.get(f"{output}.{port}", ())
        found = work.read_many(column)
        return [found[digest] for digest in column]

    seen = [np.frombuffer(data, "<f4").astype(np.float64).reshape(-1, tags) for data in blobs("seen")]
    return [Looks(rows, from_bytes(data)) for rows, data in zip(seen, blobs("features"), strict=True)]


def _together(looks: Sequence[Looks]) -> Looks:
    import numpy as np

    from lorac.evaluate.cells import Looks

    return Looks(np.concatenate([one.probabilities for one in looks]), np.concatenate([one.features for one in looks]))


def _held_out(work: Work) -> HeldOut | None:
    """The losses of the finished LoRA on pictures that it was not trained with."""
    from lorac.evaluate.figures import HeldOut
    from lorac.train.slices import decode

    if "losses" not in work.shared:
        return None
    losses = json.loads(work.read(work.shared["losses"]))
    pictures = set(decode(work.read(work.shared["validation"])).item)
    return HeldOut(lora=losses["lora"], base=losses["base"], count=len(pictures))
