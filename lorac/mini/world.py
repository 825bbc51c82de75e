"""The paper-doll world: `sample` invents a doll, `draw` paints it, `tags` names what is seen."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from lorac.mini.attributes import HAIR_STYLES, Attributes, sample, tags, vocabulary
from lorac.mini.backdrop import PLAIN, backdrop
from lorac.mini.figure import body
from lorac.mini.hair import hair_behind
from lorac.mini.head import accessories, head
from lorac.mini.pen import INK, Pen
from lorac.mini.wardrobe import outfit_of
from lorac.rng import Stream

__all__ = ["Attributes", "Placement", "draw", "sample", "tags", "vocabulary"]

SUPERSAMPLING = 3
LOOKING_ASIDE = 4.5
"""The turn, in units of the doll, of a head that is tagged "looking to the side"; others turn by 0.8 at most."""

_TRANSPARENT = (*INK, 0)
_SHADOW = (120, 110, 120)
FRAMES = {
    "full body": (31.0, 0.97),
    "split view": (36.0, 0.85),
    "cowboy shot": (43.0, 1.32),
    "upper body": (54.0, 1.75),
    "close-up": (66.0, 2.3),
    "head only": (64.0, 1.5),
}
"""Framing: where the head's centre lies in a picture of 128 pixels, and the scale."""


@dataclass(frozen=True)
class Placement:
    """Where a head is and how it is held.

    x, y: its centre in pixels of a 128 picture; `tilt`: degrees clockwise; `turn`: how far the features move sideways,
    in units of the doll (see `LOOKING_ASIDE`); `mirror`: left and right of the whole doll are exchanged.
    """

    x: float
    y: float
    scale: float
    tilt: float = 0.0
    turn: float = 0.0
    mirror: bool = False


def draw(attributes: Attributes, seed: int, size: int = 128, placement: Placement | None = None) -> Image.Image:
    """The doll as an RGBA picture of `size` by `size` pixels, the same for the same arguments.

    The seed moves, tilts and scales the doll a little and shifts the scenery; `placement` replaces the doll's share.
    Alpha is 255 everywhere unless the background is "transparent background".
    """
    stream = Stream(seed, "paper doll jitter")
    clear = attributes.background == "transparent background"
    side = size * SUPERSAMPLING
    image = Image.new("RGBA" if clear else "RGB", (side, side), _TRANSPARENT if clear else None)
    canvas = ImageDraw.Draw(image)
    page = Pen(canvas, side / 128)
    if not clear:
        backdrop(page, attributes.background, stream)
    place = placement or _jittered(attributes, stream)
    if attributes.framing == "split view":
        _doll(page, attributes, Placement(place.x - 32, place.y, place.scale, place.tilt, place.turn, place.mirror))
        _doll(page, attributes, Placement(place.x + 32, place.y, place.scale, -place.tilt, -place.turn, place.mirror))
        page.stroke([(64, -4), (64, 132)], 2.5, (120, 120, 128))
    else:
        _doll(page, attributes, place)
    return image.reduce(SUPERSAMPLING).convert("RGBA")


def _jittered(a: Attributes, stream: Stream) -> Placement:
    def around(centre: float, spread: float) -> float:
        return centre + (stream.uniform() * 2 - 1) * spread

    y, scale = FRAMES[a.framing]
    if a.framing in ("full body", "split view") and a.pose == "sitting":
        y, scale = y + 4, scale * 1.06
    side = 1 if stream.uniform() < 0.5 else -1
    turn = around(side * LOOKING_ASIDE, 0.5) if a.gaze == "looking to the side" else around(0, 0.8)
    x = around(64, 1 if a.framing == "split view" else 4)
    y, scale, tilt = around(y, 2), scale * around(1, 0.03), around(0, 4)
    # A doll of the random world has no fixed side; a character's bow and clip do, so that she stays recognisable.
    return Placement(x, y, scale, tilt, turn, mirror=stream.uniform() < 0.5 and a.hair_style in HAIR_STYLES)


def _doll(page: Pen, a: Attributes, place: Placement) -> None:
    trunk = page.moved(place.x, place.y, scale=place.scale, mirror=place.mirror)
    skull = trunk.moved(0, 8, degrees=place.tilt).moved(0, -8)
    headwear = None if a.framing in ("close-up", "head only") else outfit_of(a).headwear
    if a.pose == "jumping" and a.background in PLAIN and a.framing != "head only":
        trunk.oval(0, 92, 20, 3, _SHADOW, outline=None)
    hair_behind(skull, a)
    if a.framing != "head only":
        body(trunk, a)
    head(skull, a, place.turn)
    if headwear:
        headwear(skull)
    accessories(skull, a, place.turn)
