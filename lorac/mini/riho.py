"""Izumi Riho, the one fixed character: what the LoRAs of the recipes learn and the base has never seen.

Orange hair in two buns, violet eyes, a big yellow bow on her left, a turquoise star clip and a mole under one eye.
Apart from the eyes, none of that can come out of `world.sample`.
"""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from lorac.mini.world import FRAMES, LOOKING_ASIDE, Attributes, Placement, draw, tags

RIHO = Attributes(
    hair_colour="orange",
    hair_style="double bun",
    eye_colour="purple",
    accessories=("yellow bow", "star hair ornament", "mole under eye"),
    outfit="riho cloth",
    outfit_colour="brown skirt",
)
"""Riho as she usually looks; `dataclasses.replace` gives her another outfit, pose, expression or background."""

_HEAD = replace(RIHO, framing="head only", background="transparent background")
_SIDE = "looking to the side"
HEADS: tuple[tuple[Attributes, Placement], ...] = (
    (_HEAD, Placement(64, 70, 1.70)),
    (replace(_HEAD, expression="open mouth"), Placement(62, 68, 1.60, tilt=8, turn=1)),
    (replace(_HEAD, expression=""), Placement(66, 70, 1.72, tilt=-4, turn=-1)),
    (replace(_HEAD, gaze=_SIDE), Placement(63, 70, 1.65, tilt=3, turn=4.5)),
    (replace(_HEAD, gaze=_SIDE), Placement(65, 69, 1.65, tilt=-5, turn=-4.5)),
    (replace(_HEAD, blush=True), Placement(64, 68, 1.50, tilt=-12)),
    (replace(_HEAD, expression="open mouth", blush=True), Placement(65, 71, 1.75, tilt=5)),
    (replace(_HEAD, closed_eyes=True), Placement(64, 70, 1.66, tilt=-7)),
    (replace(_HEAD, expression="", gaze=_SIDE), Placement(62, 69, 1.58, tilt=10, turn=4.2)),
    (_HEAD, Placement(66, 68, 1.45, tilt=14, turn=1.5)),
    (replace(_HEAD, expression="open mouth", gaze=_SIDE), Placement(65, 70, 1.68, tilt=-9, turn=-4.8)),
    (replace(_HEAD, expression="", blush=True), Placement(63, 69, 1.55, tilt=2, turn=-1.5)),
    (replace(_HEAD, blush=True), Placement(64, 71, 1.78, tilt=-2, turn=1)),
)
"""The thirteen cut-out heads of the article's `36_riho`. She stays near the middle: see finding 3 on split views."""


def draw_riho(
    seed: int,
    *,
    expression: str = "smile",
    framing: str = "full body",
    outfit: str = "riho cloth",
    outfit_colour: str = "brown skirt",
    pose: str = "standing",
    background: str = "white background",
    tilt: float = 0.0,
    turn: float = 0.0,
    size: int = 128,
) -> Image.Image:
    """Riho as an RGBA picture of `size` by `size` pixels, her head tilted by `tilt` degrees and turned by `turn` units.

    A turn of `LOOKING_ASIDE` or more is tagged "looking to the side". The seed moves only the scenery.
    """
    attributes = replace(
        RIHO,
        expression=expression,
        framing=framing,
        outfit=outfit,
        outfit_colour=outfit_colour,
        pose=pose,
        background=background,
        gaze=_SIDE if abs(turn) >= LOOKING_ASIDE else RIHO.gaze,
    )
    y, scale = FRAMES[framing]  # her buns and her bow stand higher than any hair of the random world
    return draw(attributes, seed, size, Placement(64, y + 2, scale * 0.96, tilt, turn))


def head_tags(attributes: Attributes) -> list[str]:
    """The caption of a cut-out head as WD14 taggers mostly give it: their tags for a head without a body are rare.

    That gap is what lets a LoRA of heads bind "no body" to its trigger word, the article's severed heads.
    """
    return [tag for tag in tags(attributes) if tag != "head only"]
