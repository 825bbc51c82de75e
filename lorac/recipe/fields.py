"""What sections of a recipe are made of: the types of values, and what is told about a key.

Keys use the words of kohya-ss/sd-scripts where it has one. Where ours is shorter, `key(kohya=…)` names its word, so
that a copied `network_dim` is answered with `did you mean "dim"?`. `key(nodes=…)` names the node kinds whose bytes a
key can change (lowering puts it into their params by that), `key(metadata=…)` the name under which the exported file
tells it. Every section is a frozen struct, so that a recipe can be compared and handed to any thread. Lengths are
pixels, learning rates are per optimiser step.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

BUILTIN_BASE = BUILTIN_TAGGER = "builtin:mini"


def key(
    description: str,
    *,
    kohya: str = "",
    wanted: str = "",
    nodes: tuple[str, ...] = (),
    metadata: str = "",
    source: str = "",
) -> Meta:
    """Documentation of a key, kohya's name for it, and the words for its type where the type says too little.

    `nodes`: the node kinds that read the key as it stands in the recipe; one that lowering translates first (a path, a
    default that the base decides) is not named. `metadata`: the exported file's name for the value. `source`: the
    formula of what it does, the paper, or both; for the generated documentation.
    """
    told = {"kohya": kohya, "wanted": wanted, "nodes": nodes, "metadata": metadata, "source": source}
    return Meta(description=description, extra=told)


SCHEDULE, TRAIN, LOSS, SAMPLE = ("schedule",), ("train",), ("train", "validate"), ("draw",)
SIDECAR = ("sidecar",)


Text = Annotated[str, Meta(min_length=1)]
Texts = tuple[Text, ...]
Natural = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
MOST_STEPS, MOST_EPOCHS = 10_000_000, 100_000
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Strength = Annotated[float, Meta(ge=-4, le=4)]
Rank = Annotated[int, Meta(ge=1, le=1024)]
RankOrNone = Annotated[int, Meta(ge=0, le=1024)]
DOWN_BLOCKS = 12
BLOCKS = 2 * DOWN_BLOCKS + 1
"""kohya's count of the U-Net's blocks: IN00 to IN11, MID, OUT00 to OUT11."""
SamplerSteps = Annotated[int, Meta(ge=1, le=1000)]
SamplerName = Literal["ddim", "euler_a"]
CfgScale = Annotated[float, Meta(ge=1, le=100)]
Pixels = Annotated[int, Meta(ge=16, le=4096, multiple_of=8)]

Behind = Annotated[
    str,
    Meta(
        pattern="^(white|black|drop|#[0-9a-fA-F]{6})$",
        extra={"wanted": '"white", "black", a colour as "#rrggbb", or "drop"'},
    ),
]
ALPHA = key(
    'What lies behind transparent pixels: a colour, or "drop" for the hidden colours under them, as kohya trains them. '
    "Must be chosen if there are any."
)
ALPHA_MASK = key("Count the loss by opacity: transparent parts do not count.")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""
