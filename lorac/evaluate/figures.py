"""The figures of one recipe, as they stand in evaluation.json and as reports read them.

All values are in [0, 1]. `Measure | None`: None where a figure has no meaning, such as the recall of a prompt in which
the tagger knows no word, or the rate of severed heads in nothing but noise.
"""

from __future__ import annotations

import msgspec

NAMES = (
    "severed",
    "likeness",
    "recall",
    "leakage",
    "split_view",
    "closed_eyes",
    "similarity",
    "sameness",
    "broken",
)
"""All measures, in the order in which they are shown; `lorac.evaluate.measures` says what each one means."""


class Measure(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval (`low` to `high`), from `n` observations."""

    value: float
    low: float
    high: float
    n: int


class Leaked(msgspec.Struct, frozen=True):
    """A tag of the training pictures that nobody asked for: its rate here, and in the pictures without the LoRA."""

    tag: str
    rate: float
    without: float


class Prompt(msgspec.Struct, frozen=True):
    """`wanted`: the tags of the prompt that the tagger has, without people and the tags that make the character."""

    prompt: str
    negative: str
    wanted: tuple[str, ...]


class Cell(msgspec.Struct, frozen=True):
    """The pictures of one prompt (its number) at one strength. `leaked`: what leaks most comes first."""

    prompt: int
    strength: float
    measures: dict[str, Measure | None]
    leaked: tuple[Leaked, ...]


class Overall(msgspec.Struct, frozen=True):
    """The pictures of all prompts at one strength."""

    strength: float
    measures: dict[str, Measure | None]
    leaked: tuple[Leaked, ...]


class HeldOut(msgspec.Struct, frozen=True):
    """The mean loss over `count` pictures that were not trained, with the LoRA and without."""

    lora: float
    base: float
    count: int


class Score(msgspec.Struct, frozen=True):
    """How good a strength is; `lorac.evaluate.trade_off` has the formula."""

    strength: float
    score: float


class Figures(msgspec.Struct, frozen=True):
    """`cells` are prompts-major with strength 0 (without the LoRA) first; `strengths` begin with 0. Without an identity
    there is no `trade_off`, and no `preferred_weight` but the recipe's own."""

    count: int
    threshold: float
    identity: tuple[str, ...]
    training_tags: dict[str, float]
    strengths: tuple[float, ...]
    prompts: tuple[Prompt, ...]
    cells: tuple[Cell, ...]
    overall: tuple[Overall, ...]
    held_out: HeldOut | None
    trade_off: tuple[Score, ...]
    preferred_weight: float | None


def encode(figures: Figures) -> bytes:
    """The JSON that people read too, with a line end."""
    return msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"


def decode(data: bytes) -> Figures:
    """The figures in a file. Raises msgspec.ValidationError if it is none."""
    return msgspec.json.decode(data, type=Figures)
