"""The outfits: each is a few numbers for the cut and a few functions for what the cut does not say.

Coordinates are those of the body: the origin is the centre of the head, shoulders are at y = 23, the waist is at 40.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from lorac.mini.attributes import Attributes
from lorac.mini.head import bow
from lorac.mini.pen import Colour, Pen, mirrored, shade

WHITE: Colour = (252, 252, 255)
NAVY: Colour = (38, 56, 128)
GOLD: Colour = (250, 200, 50)
RUBY: Colour = (220, 30, 60)
CLOTH: dict[str, Colour] = {
    "red": (214, 38, 52),
    "blue": (50, 92, 206),
    "green": (50, 150, 84),
    "yellow": (252, 208, 62),
    "orange": (246, 138, 40),
    "pink": (250, 150, 186),
    "purple": (138, 72, 184),
    "white": (250, 250, 255),
    "brown": (150, 98, 58),
}


class Hem(NamedTuple):
    """A skirt as the pose lets it fall: its length below the waist and half its width at the hem, in units."""

    length: float
    flare: float


@dataclass(frozen=True)
class Outfit:
    """One outfit. `sleeve`, `trousers` and `socks` are fractions of the limb; `skirt` is a length in units, 0 for none.

    `details` are drawn over torso and skirt, `over` over the arms too, `headwear` over the hair.
    """

    top: Colour
    sleeve: float = 0.0
    sleeve_width: float = 8.0
    skirt: float = 0.0
    flare: float = 14.0
    skirt_colour: Colour | None = None
    trousers: float = 0.0
    trousers_width: float = 10.5
    trousers_colour: Colour = NAVY
    socks: float = 0.0
    sock_colour: Colour = WHITE
    shoes: Colour | None = (110, 60, 36)
    boots: bool = False
    hanging_sleeves: bool = False
    wristband: Colour | None = None
    details: Callable[[Pen, Hem], None] | None = None
    over: Callable[[Pen], None] | None = None
    headwear: Callable[[Pen], None] | None = None


def outfit_of(a: Attributes) -> Outfit:
    """The clothes that the attributes name, in their colour."""
    colour = CLOTH[a.outfit_colour.split()[0]] if a.outfit_colour else WHITE
    return _OUTFITS[a.outfit](colour)


def _serafuku(colour: Colour) -> Outfit:
    def details(pen: Pen, hem: Hem) -> None:
        for k in (-0.5, 0.0, 0.5):
            pen.stroke([(k * 12, 43), (k * hem.flare * 1.2, 38 + hem.length)], 1.3, shade(colour, 0.65))
        pen.shape([(-9, 22), (-11.5, 32), (-6, 32), (0, 38), (6, 32), (11.5, 32), (9, 22)], colour)
        pen.shape([(-5, 22), (0, 31), (5, 22)], WHITE)
        bow(pen.moved(0, 34), (250, 60, 60) if colour != CLOTH["red"] else NAVY, 0.75)

    blouse = Outfit(WHITE, 0.5, 9, skirt=21, flare=17, skirt_colour=colour, details=details)
    return replace(blouse, socks=0.45, sock_colour=(50, 46, 60))


def _dancer(_: Colour) -> Outfit:
    teal = (40, 190, 180)

    def details(pen: Pen, hem: Hem) -> None:
        pen.blob(mirrored([(0, 42), (11, 41), (14, 47), (12, 54), (0, 57)]), teal)
        pen.limb([(-10.5, 43), (0, 45), (10.5, 43)], 4.5, GOLD)
        pen.oval(0, 45, 3, 3, RUBY)
        pen.limb([(-6.5, 25), (0, 30), (6.5, 25)], 3.6, GOLD)

    def over(pen: Pen) -> None:
        pen.oval(0, 31, 2.6, 2.6, RUBY)

    def headwear(pen: Pen) -> None:
        pen.limb([(-19, -11), (-10, -15), (0, -16), (10, -15), (19, -11)], 4, GOLD)
        pen.oval(0, -15, 3.4, 3.8, RUBY)

    top = Outfit((190, 50, 150), 0.28, 10.5, shoes=GOLD, details=details, over=over, headwear=headwear)
    return replace(top, trousers=0.85, trousers_width=15, trousers_colour=teal)


def _hoodie(colour: Colour) -> Outfit:
    def details(pen: Pen, hem: Hem) -> None:
        pen.blob(mirrored([(0, 24), (12, 25), (13, 40), (13.5, 50), (0, 51)]), colour)
        pen.blob(mirrored([(0, 40), (7, 40), (9, 47), (0, 47)]), shade(colour, 0.8))
        pen.blob(mirrored([(0, 27), (9, 26), (12, 21), (6, 19), (0, 19)]), shade(colour, 0.8))
        for x in (-3, 3):
            pen.stroke([(x, 28), (x, 35)], 1.4, WHITE)

    top = Outfit(colour, 0.88, 9.5, socks=0.2, shoes=(236, 70, 60), details=details)
    return replace(top, trousers=0.3, trousers_width=12, trousers_colour=(60, 90, 150))


def _kimono(colour: Colour) -> Outfit:
    sash, cord = (NAVY, GOLD) if colour == CLOTH["red"] else (GOLD, (200, 50, 60))

    def details(pen: Pen, hem: Hem) -> None:
        pen.shape([(-6, 21), (1, 33), (4, 33), (7, 21), (4.5, 21), (0, 28), (-3, 21)], WHITE)
        pen.stroke([(2, 46), (3, 39 + hem.length)], 1.4, shade(colour, 0.65))
        for x, y in ((-0.5, 0.55), (0.55, 0.75), (-0.25, 0.88)):
            pen.oval(x * hem.flare, 42 + y * hem.length, 2.4, 2.4, WHITE, outline=None)
        pen.blob(mirrored([(0, 35), (11, 35), (11.5, 45), (0, 45.5)]), sash)
        pen.stroke([(-10.5, 40), (10.5, 40)], 2, cord)

    robe = Outfit(colour, 0.9, 9, skirt=46, flare=13, details=details)
    return replace(robe, hanging_sleeves=True, socks=0.3, shoes=(150, 60, 40))


def _maid(_: Colour) -> Outfit:
    def details(pen: Pen, hem: Hem) -> None:
        length, flare = hem
        edge = [(flare * 0.72, 40 + length * 0.78), (flare * 0.4, 42 + length * 0.84), (0.0, 42 + length * 0.86)]
        pen.blob(mirrored([(0, 41), (8, 41), *edge]), WHITE)
        pen.blob(mirrored([(0, 27), (6, 26), (8, 41), (0, 42)]), WHITE)
        bow(pen.moved(0, 25), CLOTH["red"], 0.55)

    def headwear(pen: Pen) -> None:
        for x, y in ((-15, -18), (-8, -23), (0, -25), (8, -23), (15, -18)):
            pen.oval(x, y, 5, 4.4, WHITE)
        pen.limb([(-16, -13), (-8, -18), (0, -19.5), (8, -18), (16, -13)], 4.5, WHITE)

    dress = Outfit((44, 40, 58), 0.4, 12, skirt=30, flare=22, details=details, headwear=headwear)
    return replace(dress, socks=0.7, shoes=(60, 40, 40))


def _military(_: Colour) -> Outfit:
    olive, leather = (98, 112, 62), (80, 48, 30)

    def details(pen: Pen, hem: Hem) -> None:
        pen.blob(mirrored([(0, 40), (10, 40), (13, 50), (12, 55), (0, 56)]), olive)
        pen.stroke([(0, 26), (0, 54)], 1.4, shade(olive, 0.6))
        for x in (-6, 6):
            pen.shape([(x - 3, 30), (x + 3, 30), (x + 3, 35), (x - 3, 35)], shade(olive, 0.78))
        pen.shape([(-11, 40), (11, 40), (11.5, 45), (-11.5, 45)], leather)
        pen.shape([(-3, 39), (3, 39), (3, 46), (-3, 46)], GOLD)
        pen.shape([(-5, 22), (0, 29), (5, 22)], (206, 190, 140))

    def headwear(pen: Pen) -> None:
        pen.blob([(-24, -18), (-20, -27), (0, -30), (20, -27), (24, -18), (14, -14), (-14, -14)], olive)
        pen.limb([(-17, -14), (0, -16), (17, -14)], 4.5, leather)
        pen.blob([(-16, -12), (0, -14), (16, -12), (10, -8), (0, -7), (-10, -8)], (44, 40, 40))
        pen.oval(0, -21.5, 3.4, 3.4, GOLD)

    jacket = Outfit(olive, 0.88, 9, boots=True, shoes=(50, 40, 40), details=details, headwear=headwear)
    return replace(jacket, trousers=0.75, trousers_width=11.5, trousers_colour=shade(olive, 0.85))


def _dress(colour: Colour) -> Outfit:
    def details(pen: Pen, hem: Hem) -> None:
        low, trim = 40 + hem.length, shade(colour, 0.68)
        border = ((-0.92, 5.0), (-0.5, 3.4), (0.0, 3.0), (0.5, 3.4), (0.92, 5.0))
        pen.limb([(-10, 41), (0, 42.5), (10, 41)], 3.6, trim)
        pen.stroke([(hem.flare * x, low - y) for x, y in border], 2.4, trim)

    return Outfit(colour, skirt=42, flare=26, shoes=(230, 60, 80), details=details)


def _swimsuit(colour: Colour) -> Outfit:
    def details(pen: Pen, hem: Hem) -> None:
        waves = ((-1.0, 49.0), (-0.7, 53.0), (-0.4, 50.0), (0.0, 53.5), (0.4, 50.0), (0.7, 53.0), (1.0, 49.0))
        pen.blob([*((hem.flare * x, y) for x, y in waves), (10, 42), (0, 43), (-10, 42)], WHITE)
        pen.stroke([(-9, 41), (0, 42.5), (9, 41)], 2.6, colour)
        pen.limb([(-8.5, 27), (-4, 30), (0, 28), (4, 30), (8.5, 27)], 4, WHITE)

    return Outfit(colour, flare=16, shoes=None, details=details)


def _capelet(colour: Colour) -> Outfit:
    def over(pen: Pen) -> None:
        pen.blob(mirrored([(0, 20), (9, 20), (17, 27), (22, 42), (12, 45), (0, 46)]), colour)
        pen.stroke([(0, 26), (0, 44)], 1.4, shade(colour, 0.65))
        pen.stroke([(-19.5, 39), (-11, 41.5), (0, 42), (11, 41.5), (19.5, 39)], 2.2, WHITE)
        bow(pen.moved(0, 24), GOLD, 0.6)

    return Outfit(WHITE, 0.88, 8.5, skirt=26, flare=17, shoes=(130, 76, 40), boots=True, over=over)


def _riho_cloth(colour: Colour) -> Outfit:
    def details(pen: Pen, hem: Hem) -> None:
        stripe, across = (250, 214, 130), 40 + hem.length * 0.6
        for k in (-0.6, 0.0, 0.6):
            pen.stroke([(k * 11, 43), (k * hem.flare, 39 + hem.length)], 1.6, stripe)
        pen.stroke([(-hem.flare * 0.8, across), (hem.flare * 0.8, across)], 1.6, stripe)
        pen.shape([(-6, 22), (0, 38), (6, 22)], WHITE)

    cardigan = Outfit((250, 232, 190), 0.78, 9, skirt=22, flare=18, skirt_colour=colour, details=details)
    return replace(cardigan, wristband=CLOTH["yellow"], socks=0.8, sock_colour=(60, 50, 70))


_OUTFITS: dict[str, Callable[[Colour], Outfit]] = {
    "school uniform": _serafuku,
    "dancer": _dancer,
    "hoodie": _hoodie,
    "kimono": _kimono,
    "maid": _maid,
    "military uniform": _military,
    "dress": _dress,
    "swimsuit": _swimsuit,
    "capelet": _capelet,
    "riho cloth": _riho_cloth,
}
