"""What a paper doll is: its attributes, how they are drawn at random, and the tags that name them.

Tags use the vocabulary of booru sites and of WD14, with spaces. A tag names only what the picture shows: a close-up has
no outfit tag, closed eyes have no colour. So a caption is exact, and a model trained on it has nothing to guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorac.rng import Stream

HAIR_COLOURS = ("brown", "black", "blonde", "red", "blue", "pink", "green", "white")
HAIR_STYLES = ("long hair", "short hair", "twintails", "ponytail", "bob cut")
EYE_COLOURS = ("blue", "brown", "green", "red", "purple", "yellow")
MOUTHS = (("smile", 40), ("open mouth", 20), ("", 40))
ACCESSORIES = (("", 80), ("red bow", 10), ("glasses", 10))
POSES = (("standing", 46), ("sitting", 18), ("dancing", 18), ("jumping", 18))
FRAMINGS = (
    ("full body", 48),
    ("cowboy shot", 20),
    ("upper body", 18),
    ("close-up", 10),
    ("head only", 2),
    ("split view", 2),
)
BACKGROUNDS = (
    ("white background", 24),
    ("black background", 8),
    ("grey background", 8),
    ("blue background", 8),
    ("pink background", 6),
    ("classroom", 12),
    ("ocean", 11),
    ("japanese garden", 11),
    ("tropical island", 12),
)

OUTFITS: dict[str, tuple[str, ...]] = {
    "school uniform": ("blue skirt", "red skirt"),
    "dancer": ("",),
    "hoodie": ("green hoodie", "yellow hoodie", "orange hoodie"),
    "kimono": ("pink kimono", "blue kimono", "red kimono", "purple kimono"),
    "maid": ("",),
    "military uniform": ("",),
    "dress": ("red dress", "blue dress", "white dress", "purple dress", "yellow dress"),
    "swimsuit": ("blue swimsuit", "red swimsuit"),
    "capelet": ("red capelet", "green capelet", "blue capelet"),
}
"""The outfits of the random world, and the colours that each comes in ("" where there is one only)."""

_OUTFIT_TAGS: dict[str, tuple[str, ...]] = {
    "school uniform": ("school uniform", "serafuku", "neckerchief"),
    "dancer": ("dancer", "gold trim", "harem pants"),
    "hoodie": ("casual", "hoodie", "shorts"),
    "kimono": ("kimono", "japanese clothes", "wide sleeves"),
    "maid": ("maid", "maid apron", "maid headdress"),
    "military uniform": ("military uniform", "military hat", "belt"),
    "dress": ("dress", "sleeveless"),
    "swimsuit": ("swimsuit", "frilled swimsuit"),
    "capelet": ("capelet", "long sleeves"),
    "riho cloth": ("cardigan", "long sleeves", "plaid", "plaid skirt", "wrist scrunchie"),
}
_BELOW_THE_CHEST = frozenset(
    {"shorts", "harem pants", "blue skirt", "red skirt", "brown skirt", "plaid skirt", "wrist scrunchie"}
)
_ARM_TAGS = {"dancing": "arms up", "jumping": "outstretched arms"}
_PLACE_TAGS: dict[str, tuple[str, ...]] = {
    "classroom": ("classroom", "school", "indoors"),
    "ocean": ("ocean", "horizon", "outdoors"),
    "japanese garden": ("japanese garden", "torii", "outdoors"),
    "tropical island": ("tropical island", "palm tree", "beach", "outdoors"),
}


@dataclass(frozen=True)
class Attributes:
    """Everything that a drawing shows, apart from the jitter that the drawing's seed gives.

    `expression` is the mouth ("" is a neutral line), `gaze` is "looking at viewer" or "looking to the side";
    `outfit_colour` is one of `OUTFITS[outfit]`. `accessories` are tags too. `mannequin` replaces skin, face and hair.
    """

    hair_colour: str = "brown"
    hair_style: str = "long hair"
    eye_colour: str = "blue"
    expression: str = "smile"
    closed_eyes: bool = False
    blush: bool = False
    gaze: str = "looking at viewer"
    dark_skin: bool = False
    accessories: tuple[str, ...] = ()
    outfit: str = "school uniform"
    outfit_colour: str = "blue skirt"
    pose: str = "standing"
    framing: str = "full body"
    background: str = "white background"
    mannequin: bool = False


def sample(seed: int, index: int) -> Attributes:
    """The attributes of picture `index` of the random world; each is drawn independently of the others."""
    stream = Stream(seed, "paper doll", index)
    outfit = _any(stream, tuple(OUTFITS))
    accessory = _weighted(stream, ACCESSORIES)
    mannequin = stream.uniform() < 0.02
    framing = _weighted(stream, FRAMINGS)
    return Attributes(
        hair_colour=_any(stream, HAIR_COLOURS),
        hair_style=_any(stream, HAIR_STYLES),
        eye_colour=_any(stream, EYE_COLOURS),
        expression=_weighted(stream, MOUTHS),
        closed_eyes=stream.uniform() < 0.1,
        blush=stream.uniform() < 0.25,
        gaze="looking to the side" if stream.uniform() < 0.15 else "looking at viewer",
        dark_skin=stream.uniform() < 0.12,
        accessories=(accessory,) if accessory else (),
        outfit=outfit,
        outfit_colour=_any(stream, OUTFITS[outfit]),
        pose=_weighted(stream, POSES),
        framing="full body" if mannequin and framing == "head only" else framing,
        background=_weighted(stream, BACKGROUNDS),
        mannequin=mannequin,
    )


def tags(attributes: Attributes) -> list[str]:
    """The tags of a drawing: people, head, outfit, pose, framing, place. No tag occurs twice."""
    return [*_people(attributes), *_head(attributes), *_clothes(attributes), *_composition(attributes)]


def vocabulary() -> list[str]:
    """Every tag that a sample can carry, sorted."""
    words = {"1girl", "solo", "multiple views", "mannequin", "faceless", "closed eyes", "blush", "dark skin"}
    words |= {"looking at viewer", "looking to the side", "simple background", *_ARM_TAGS.values()}
    words |= {f"{colour} hair" for colour in HAIR_COLOURS} | {f"{colour} eyes" for colour in EYE_COLOURS}
    words |= set(HAIR_STYLES)
    for outfit, colours in OUTFITS.items():
        words |= {*_OUTFIT_TAGS[outfit], *colours}
    for weighted in (MOUTHS, ACCESSORIES, POSES, FRAMINGS, BACKGROUNDS):
        words |= {word for word, _ in weighted}
    words |= {word for place in _PLACE_TAGS.values() for word in place}
    return sorted(words - {""})


def _people(a: Attributes) -> list[str]:
    if a.mannequin:
        return ["mannequin", "faceless"]
    return ["1girl", "multiple views"] if a.framing == "split view" else ["1girl", "solo"]


def _head(a: Attributes) -> list[str]:
    if a.mannequin:
        return []
    eyes = ["closed eyes"] if a.closed_eyes else [f"{a.eye_colour} eyes"]
    gaze = [a.gaze] if a.gaze == "looking to the side" or not a.closed_eyes else []
    extra = [*a.accessories, *(["blush"] if a.blush else []), *(["dark skin"] if a.dark_skin else [])]
    return [a.hair_style, f"{a.hair_colour} hair", *eyes, *gaze, *([a.expression] if a.expression else []), *extra]


def _clothes(a: Attributes) -> list[str]:
    if a.framing in ("close-up", "head only"):
        return []
    words = [*_OUTFIT_TAGS[a.outfit], *([a.outfit_colour] if a.outfit_colour else [])]
    if a.framing == "upper body":
        words = [word for word in words if word not in _BELOW_THE_CHEST]
    return words


def _composition(a: Attributes) -> list[str]:
    framing = ["split view", "full body"] if a.framing == "split view" else [a.framing]
    shows_pose = "full body" in framing or a.framing == "cowboy shot"
    arms = [_ARM_TAGS[a.pose]] if a.pose in _ARM_TAGS and a.framing not in ("close-up", "head only") else []
    place = list(_PLACE_TAGS.get(a.background, (a.background, "simple background")))
    return [*([a.pose] if shows_pose else []), *arms, *framing, *place]


def _any(stream: Stream, items: Sequence[str]) -> str:
    return items[stream.below(len(items))]


def _weighted(stream: Stream, items: Sequence[tuple[str, int]]) -> str:
    ticket = stream.below(sum(weight for _, weight in items))
    for item, weight in items:
        ticket -= weight
        if ticket < 0:
            return item
    raise AssertionError("weights are positive")
