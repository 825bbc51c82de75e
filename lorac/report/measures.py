"""What the figures are called on the pages, which way is better, and what each one means."""

from __future__ import annotations

from dataclasses import dataclass

from lorac.evaluate.figures import NAMES


@dataclass(frozen=True)
class Meaning:
    """`good`: more of it is better. `definition`: one sentence for people."""

    label: str
    good: bool
    definition: str

    @property
    def style(self) -> str:
        """The class of its colour."""
        return "good" if self.good else "bad"

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "more is better" if self.good else "less is better"


_MEANINGS = {
    "severed": Meaning(
        "severed heads",
        False,
        "Heads without a body: the share of unbroken pictures where the tagger sees a person, a face or hair, and no "
        "sign of a body, which is any tag of clothes, limbs, pose or framing, close-up and portrait among them; or "
        "which it calls a severed head itself.",
    ),
    "likeness": Meaning(
        "likeness",
        True,
        "How many of the tags that make the character the tagger sees in a picture, on average; in a broken one, none.",
    ),
    "recall": Meaning(
        "prompt followed",
        True,
        "How many of the prompt's other tags, such as clothes and places, the tagger sees in a picture, on average: "
        "low means that the LoRA no longer lets them be changed. In a broken picture it sees none.",
    ),
    "leakage": Meaning(
        "leakage",
        False,
        "How much more often than without the LoRA the tags of the training pictures appear unasked in unbroken "
        "pictures, on average over tags. A tag that appears less often counts as 0, not less, so chance alone makes "
        "the figure a little larger than 0.",
    ),
    "split_view": Meaning(
        "split views", False, "The share of unbroken pictures that the tagger calls a split view or multiple views."
    ),
    "closed_eyes": Meaning(
        "closed eyes", False, "The share of unbroken pictures with closed eyes, of prompts that do not ask for them."
    ),
    "similarity": Meaning(
        "memorised",
        False,
        "How like a picture is to the training picture nearest to it, on average; above 90&nbsp;% it is a copy. Broken "
        "pictures count too.",
    ),
    "sameness": Meaning(
        "sameness",
        False,
        "How like the pictures of one prompt are to each other, on average: masks, monotony. "
        "Broken pictures count too: empty ones are all alike.",
    ),
    "broken": Meaning("broken", False, "The share of pictures that are noise, or of one colour all over."),
}
MEANINGS = {name: _MEANINGS[name] for name in NAMES}
"""By name, in the order in which they are shown."""
TRADE_OFF = Meaning(
    "trade-off",
    True,
    "The geometric mean of likeness, of prompt followed, and of what severed heads, leakage and broken pictures leave "
    "of 100&nbsp;%. The strength with the highest one becomes the preferred weight, unless the recipe names another. "
    "Where no tags make the character there is none.",
)
SHOWN = tuple(sorted(NAMES, key=lambda name: not MEANINGS[name].good))
"""What should be high first, then what should be low."""
