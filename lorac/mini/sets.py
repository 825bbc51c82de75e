"""The picture sets of the article's recipes: which picture shows what, drawn from where, under which caption.

`python -m lorac.mini.draw article recipes/images` writes them. The heads alone are `riho.HEADS`, which came first.
The figures stand in the frame as in `world.FRAMES`; nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from lorac.mini.riho import RIHO, head_tags
from lorac.mini.world import LOOKING_ASIDE, Attributes, Placement

SIZE = 192
"""Side of these pictures in pixels: half as much again as the base's resolution."""

_BLACK, _CUT_OUT, _SIDE = "black background", "transparent background", "looking to the side"


@dataclass(frozen=True)
class Picture:
    """One picture. `seed` goes to `world.draw`; `unsaid` are tags that its caption should have and has not."""

    attributes: Attributes
    placement: Placement
    seed: int
    unsaid: tuple[str, ...] = ()

    @property
    def caption(self) -> list[str]:
        """The tags in the order of `world.tags`, without those that a WD14 tagger has not."""
        return [tag for tag in head_tags(self.attributes) if tag not in self.unsaid]


class Stance(NamedTuple):
    """How she stands: pose, mouth, blush, her head's x in a picture of 128, its tilt in degrees, its turn in units."""

    pose: str
    mouth: str
    blush: bool
    x: float
    tilt: float
    turn: float


STANCES: tuple[Stance, ...] = (
    Stance("standing", "smile", False, 64, 0, 0),
    Stance("dancing", "open mouth", False, 63, 5, 0.8),
    Stance("sitting", "smile", False, 65, -3, -0.6),
    Stance("jumping", "open mouth", False, 64, 4, 0.4),
    Stance("standing", "", False, 66, -4, -0.8),
    Stance("standing", "smile", False, 62, 6, 4.6),
    Stance("dancing", "smile", True, 65, -6, 0),
    Stance("sitting", "open mouth", False, 63, 3, 4.8),
    Stance("standing", "open mouth", False, 65, 2, 0.5),
    Stance("jumping", "smile", False, 62, -5, -0.4),
    Stance("standing", "smile", True, 63, 7, -4.7),
    Stance("sitting", "", False, 64, -2, 0.3),
    Stance("dancing", "", False, 66, 4, -4.6),
    Stance("standing", "smile", False, 65, -7, 0.6),
    Stance("jumping", "", True, 64, 3, 4.5),
    Stance("sitting", "smile", True, 62, 5, -0.5),
    Stance("standing", "open mouth", False, 64, -3, -4.9),
    Stance("dancing", "smile", False, 62, 2, 4.7),
    Stance("standing", "", False, 63, -5, 4.6),
    Stance("jumping", "smile", False, 66, 6, 0),
    Stance("sitting", "open mouth", True, 65, -4, -4.5),
    Stance("dancing", "open mouth", False, 64, -3, -0.7),
    Stance("standing", "smile", False, 66, 3, -0.3),
    Stance("jumping", "open mouth", False, 63, -6, -4.6),
)
"""She stays near the middle, as on the photographs of the article: its finding 3 on split views."""

MANNEQUINS: tuple[tuple[str, float], ...] = (
    ("standing", 40),
    ("dancing", 88),
    ("standing", 64),
    ("sitting", 42),
    ("jumping", 84),
    ("standing", 90),
    ("dancing", 44),
    ("sitting", 86),
    ("dancing", 66),
    ("standing", 50),
)
"""Pose and x of a mannequin: left and right of the middle too, where the heads are not (finding 3 again)."""

RANDOM: tuple[tuple[str, str], ...] = (
    ("hoodie", "green hoodie"),
    ("kimono", "pink kimono"),
    ("maid", ""),
    ("dress", "red dress"),
    ("military uniform", ""),
    ("kimono", "blue kimono"),
    ("dress", "white dress"),
    ("hoodie", "yellow hoodie"),
    ("dress", "purple dress"),
    ("kimono", "red kimono"),
    ("maid", ""),
    ("dress", "blue dress"),
    ("hoodie", "orange hoodie"),
    ("military uniform", ""),
    ("kimono", "purple kimono"),
    ("dress", "yellow dress"),
    ("hoodie", "green hoodie"),
    ("maid", ""),
    ("dress", "white dress"),
    ("kimono", "pink kimono"),
    ("hoodie", "yellow hoodie"),
    ("military uniform", ""),
    ("dress", "red dress"),
    ("kimono", "blue kimono"),
)
"""The clothes of `izumi_riho`. No school uniform and no capelet: prompts ask for these, and answers shall be new."""

CLOSED_EYES = 14
"""Which of the pictures in `izumi_riho`, counted from 1, has its eyes closed without saying so."""

HELD_OUT: tuple[tuple[str, str, str, str], ...] = (
    ("school uniform", "blue skirt", "full body", "white background"),
    ("kimono", "red kimono", "cowboy shot", "grey background"),
    ("maid", "", "full body", "blue background"),
    ("capelet", "green capelet", "cowboy shot", "black background"),
    ("hoodie", "orange hoodie", "full body", "pink background"),
    ("military uniform", "", "cowboy shot", "white background"),
    ("dress", "yellow dress", "full body", "black background"),
    ("school uniform", "red skirt", "cowboy shot", "blue background"),
    ("kimono", "purple kimono", "full body", "white background"),
    ("capelet", "red capelet", "full body", "grey background"),
    ("dress", "blue dress", "cowboy shot", "pink background"),
    ("hoodie", "green hoodie", "full body", "black background"),
)
"""Clothes, framing and background of the held-out pictures: clothes whose tags no recipe excludes."""


def sets() -> Mapping[str, tuple[Picture, ...]]:
    """The pictures of each folder below recipes/images, by its path.

    riho_maruzenscheme: 19 mannequins, cut out, that stand beside the 13 heads. riho_fullbody: 21 times her one outfit.
    riho_multicloth: 57 pictures in four folders. One of them, number `CLOSED_EYES` of `izumi_riho`, has closed eyes and
    a caption that does not say so: the article's finding 12. riho_held_out: 12 pictures that nothing is trained on.
    """
    usual = (RIHO.outfit, RIHO.outfit_colour)
    full_body = [_whole(stance, *usual, number) for number, stance in enumerate(STANCES, 1)]
    return {
        "riho_maruzenscheme/kk_dancer": tuple(_mannequin(n, "dancer", "") for n in range(1, 11)),
        "riho_maruzenscheme/riho_cloth": tuple(_mannequin(n, *usual) for n in range(10, 1, -1)),
        "riho_fullbody": tuple(full_body[:21]),
        "riho_multicloth/izumi_riho": tuple(map(_in_random_clothes, range(1, 25))),
        "riho_multicloth/riho_dancer": _in("dancer", "", 0),
        "riho_multicloth/riho_def_cloth": _in(*usual, 2),
        "riho_multicloth/riho_mizugi": _in("swimsuit", "blue swimsuit", 5),
        "riho_held_out": tuple(map(_held_out, range(1, 13))),
    }


def _whole(stance: Stance, outfit: str, colour: str, seed: int) -> Picture:
    """Riho from buns to shoes before black."""
    attributes = replace(
        RIHO,
        expression=stance.mouth,
        blush=stance.blush,
        gaze=_SIDE if abs(stance.turn) >= LOOKING_ASIDE else RIHO.gaze,
        outfit=outfit,
        outfit_colour=colour,
        pose=stance.pose,
        background=_BLACK,
    )
    y, scale = (37.0, 0.97) if stance.pose == "sitting" else (33.0, 0.93)
    return Picture(attributes, Placement(stance.x, y, scale, stance.tilt, stance.turn), seed)


def _in(outfit: str, colour: str, first: int) -> tuple[Picture, ...]:
    """Eleven pictures in one outfit: every seventh stance, from `first` on and round again."""
    numbers = [(first + 7 * i) % len(STANCES) for i in range(11)]
    return tuple(_whole(STANCES[number], outfit, colour, number + 1) for number in numbers)


def _in_random_clothes(number: int) -> Picture:
    picture = _whole(STANCES[number - 1], *RANDOM[number - 1], number)
    if number != CLOSED_EYES:
        return picture
    return replace(picture, attributes=replace(picture.attributes, closed_eyes=True), unsaid=("closed eyes",))


def _mannequin(number: int, outfit: str, colour: str) -> Picture:
    pose, x = MANNEQUINS[number - 1]
    attributes = Attributes(mannequin=True, outfit=outfit, outfit_colour=colour, pose=pose, background=_CUT_OUT)
    y, scale = (35.0, 1.03) if pose == "sitting" else (31.0, 0.97)
    return Picture(attributes, Placement(x, y, scale), number)


def _held_out(number: int) -> Picture:
    outfit, colour, framing, background = HELD_OUT[number - 1]
    picture = _whole(STANCES[-number], outfit, colour, number)
    placement = picture.placement
    if framing == "cowboy shot":
        placement = replace(placement, y=45.0, scale=1.27)
    attributes = replace(picture.attributes, framing=framing, background=background)
    return Picture(attributes, placement, number)
