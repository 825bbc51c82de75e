"""Hair: what hangs behind the body and what falls over the face. The origin is the centre of the head."""

from __future__ import annotations

from lorac.mini.attributes import Attributes
from lorac.mini.pen import Colour, Pen, Point, mirrored, shade

HAIR: dict[str, Colour] = {
    "brown": (128, 76, 42),
    "black": (50, 46, 64),
    "blonde": (250, 212, 92),
    "red": (206, 44, 44),
    "blue": (62, 110, 220),
    "pink": (250, 142, 184),
    "green": (66, 168, 92),
    "white": (232, 234, 246),
    "orange": (240, 126, 38),
}
_CAP: list[Point] = [
    (-20.5, 4),
    (-21.5, -6),
    (-18, -16),
    (-10, -22),
    (0, -24),
    (10, -22),
    (18, -16),
    (21.5, -6),
    (20.5, 4),
]
_BANGS: dict[str, list[Point]] = {
    "long hair": [(17, -1), (13, -8), (9, -2), (4, -9), (0, -3), (-5, -9), (-10, -2), (-14, -8), (-17, -1)],
    "twintails": [(18, -3), (12, -9), (5, -4), (0, -12), (-5, -4), (-12, -9), (-18, -3)],
    "short hair": [(19, 2), (15, -8), (10, -3), (3, -11), (-4, -2), (-9, -8), (-14, 0), (-17, -5)],
    "ponytail": [(18, -1), (14, -10), (4, -15), (-4, -8), (-12, -3), (-18, 0)],
    "bob cut": [(17, -3), (9, -2.5), (0, -2.5), (-9, -2.5), (-17, -3)],
    "double bun": [(17, 1), (14, -7), (9, -1), (6, -9), (-1, -13), (-8, -5), (-12, -9), (-17, 1)],
}
_BACK: dict[str, list[Point]] = {
    "long hair": mirrored([(0, -24), (16, -19), (23, -4), (24, 20), (28, 44), (26, 62), (14, 58), (0, 61)]),
    "short hair": mirrored([(0, -24), (16, -19), (22.5, -6), (22, 6), (24, 14), (16, 16), (0, 18)]),
    "bob cut": mirrored([(0, -25), (17, -20), (25, -6), (27, 10), (27, 22), (20, 25), (8, 24), (0, 24)]),
    "ponytail": mirrored([(0, -24), (16, -19), (22, -6), (20, 6), (12, 14), (0, 16)]),
    "twintails": mirrored([(0, -24), (16, -19), (22, -6), (20, 6), (12, 14), (0, 16)]),
    "double bun": mirrored([(0, -24), (16, -19), (23, -6), (23, 8), (20, 17), (12, 14), (0, 16)]),
}
_LOCKS: dict[str, list[Point]] = {
    "long hair": [(16, -6), (21.5, -3), (22, 12), (19.5, 26), (17, 14)],
    "twintails": [(16, -6), (21.5, -3), (22, 12), (19.5, 26), (17, 14)],
    "bob cut": [(16, -6), (22, -4), (25.5, 10), (25, 22), (19, 24), (16.5, 18), (17.5, 6)],
    "double bun": [(16, -6), (21.5, -3), (23, 8), (25, 21), (19, 19), (17, 8)],
}
_TWINTAIL: list[Point] = [(17, -16), (26, -20), (35, -8), (38, 16), (36, 38), (30, 50), (26, 34), (26, 14), (20, -4)]
_PONYTAIL: list[Point] = [(4, -22), (18, -31), (32, -24), (38, -4), (35, 20), (29, 38), (24, 22), (24, 2), (16, -14)]
_BAND: Colour = (240, 60, 80)


def hair_behind(pen: Pen, a: Attributes) -> None:
    """The hair that lies behind the body, to be drawn before it."""
    if a.mannequin:
        return
    colour = HAIR[a.hair_colour]
    if a.hair_style == "twintails":
        for side in _sides(pen):
            side.blob(_TWINTAIL, colour)
    elif a.hair_style == "ponytail":
        pen.blob(_PONYTAIL, colour)
    elif a.hair_style == "double bun":
        for x in (-19, 19):
            pen.oval(x, -22, 10.5, 10.5, colour)
    pen.blob(_BACK[a.hair_style], shade(colour, 0.8))


def hair_in_front(pen: Pen, a: Attributes, turn: float) -> None:
    """Locks, the cap of hair with its bangs, a shine, and what ties the tails. The bangs follow the face half-way."""
    colour = HAIR[a.hair_colour]
    if a.hair_style in _LOCKS:
        for side in _sides(pen):
            side.blob(_LOCKS[a.hair_style], colour)
    pen.shape([*_CAP, *((x + turn * 0.5, y) for x, y in _BANGS[a.hair_style])], colour)
    pen.stroke([(-12, -14), (-6, -17), (0, -18)], 2.4, shade(colour, 1.4))
    if a.hair_style == "twintails":
        for x in (-19, 19):
            pen.oval(x, -14, 3.4, 3.4, _BAND)
    elif a.hair_style == "ponytail":
        pen.oval(13, -20, 3.8, 3.4, _BAND)


def _sides(pen: Pen) -> tuple[Pen, Pen]:
    return pen, pen.moved(0, 0, mirror=True)
