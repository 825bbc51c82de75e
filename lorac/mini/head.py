"""The head: face, expression and accessories. The origin is the centre of the head; the face is 39 units wide."""

from __future__ import annotations

import math

from lorac.mini.attributes import Attributes
from lorac.mini.hair import hair_in_front
from lorac.mini.pen import INK, Colour, Pen, Point, mirrored, shade

SKIN: Colour = (255, 224, 200)
DARK_SKIN: Colour = (176, 116, 80)
MANNEQUIN: Colour = (206, 198, 186)
EYES: dict[str, Colour] = {
    "blue": (36, 118, 240),
    "brown": (140, 80, 36),
    "green": (30, 170, 74),
    "red": (226, 36, 44),
    "purple": (150, 60, 210),
    "yellow": (246, 196, 20),
}

_FACE = mirrored([(0, -20), (14, -16), (19.5, -3), (17, 9), (9, 17), (0, 20.5)])
_BOW: list[Point] = [(0, 0), (6, -6), (11, -4), (10.5, 4), (6, 5)]
_RIM = ((1, -0.7), (0.7, -1), (-0.7, -1), (-1, -0.7), (-1, 0.7), (-0.7, 1), (0.7, 1), (1, 0.7), (1, -0.7))


def skin(a: Attributes) -> Colour:
    """The colour of face and limbs."""
    if a.mannequin:
        return MANNEQUIN
    return DARK_SKIN if a.dark_skin else SKIN


def head(pen: Pen, a: Attributes, turn: float) -> None:
    """The face and the hair before it. `turn` moves the features sideways, in units: a slight turn of the head."""
    if a.mannequin:
        pen.blob(_FACE, MANNEQUIN)
        pen.stroke([(0, -18), (0, 18)], 1.2, shade(MANNEQUIN, 0.8))
        return
    for x in (-19.0, 19.0):
        pen.oval(x, 4, 3.5, 4.5, skin(a))
    pen.blob(_FACE, skin(a))
    features = pen.moved(turn, 0)
    if a.blush:
        for x in (-12.5, 12.5):
            features.oval(x, 11, 4.2, 2.6, (250, 128, 128), outline=None)
    for x in (-9.0, 9.0):
        _eye(features, a, x, turn)
    _mouth(features, a)
    hair_in_front(pen, a, turn)


def accessories(pen: Pen, a: Attributes, turn: float) -> None:
    """What is worn on the head, over hair and headwear."""
    for accessory in () if a.mannequin else a.accessories:
        if accessory == "red bow":
            bow(pen.moved(-13, -20, degrees=-25), (226, 30, 40))
        elif accessory == "glasses":
            _glasses(pen.moved(turn, 0))
        elif accessory == "yellow bow":
            bow(pen.moved(15, -19, degrees=30), (255, 216, 40), 1.35)
        elif accessory == "star hair ornament":
            _star(pen.moved(-13 + turn * 0.5, -12), 6.5, (60, 214, 222))
        elif accessory == "mole under eye":
            pen.oval(8.5 + turn, 13.2, 1.5, 1.5, (90, 40, 40), outline=None)


def bow(pen: Pen, colour: Colour, size: float = 1.0) -> None:
    """A ribbon tied to a bow, 22 units wide at size 1."""
    for side in (-1, 1):
        pen.blob([(side * x * size, y * size) for x, y in _BOW], colour)
    pen.oval(0, 0, 3 * size, 3 * size, shade(colour, 0.8))


def _eye(pen: Pen, a: Attributes, x: float, turn: float) -> None:
    y = 3.5
    if a.closed_eyes:
        pen.stroke([(x - 4.5, y), (x - 2.5, y + 2.6), (x, y + 3.4), (x + 2.5, y + 2.6), (x + 4.5, y)], 1.9, INK)
        return
    colour = EYES[a.eye_colour]
    look = max(-1.0, min(1.0, turn / 4)) * 1.3
    pen.oval(x, y, 5.0, 6.6, (255, 255, 255))
    pen.oval(x + look, y + 0.4, 3.9, 5.8, colour, outline=shade(colour, 0.6))
    pen.oval(x + look, y + 0.2, 1.8, 2.8, shade(colour, 0.3), outline=None)
    pen.oval(x + look - 1.5, y - 2.2, 1.6, 1.8, (255, 255, 255), outline=None)
    pen.stroke([(x - 5.2, y - 3.4), (x - 3, y - 6), (x, y - 6.8), (x + 3, y - 6), (x + 5.2, y - 3.4)], 2.2, INK)


def _mouth(pen: Pen, a: Attributes) -> None:
    if a.expression == "open mouth":
        pen.oval(0, 14, 3.8, 3.9, (200, 40, 54))
    elif a.expression == "smile":
        pen.stroke([(-5.4, 11.6), (-2.8, 14.4), (0, 15.2), (2.8, 14.4), (5.4, 11.6)], 1.7, (150, 40, 50))
    else:
        pen.stroke([(-1.8, 14), (1.8, 14)], 1.4, (150, 60, 60))


def _star(pen: Pen, radius: float, fill: Colour) -> None:
    spikes = [(radius * (1 if i % 2 == 0 else 0.5), math.tau * i / 10) for i in range(10)]
    pen.shape([(r * math.sin(angle), -r * math.cos(angle)) for r, angle in spikes], fill)


def _glasses(pen: Pen) -> None:
    black = (24, 24, 30)
    for x in (-9, 9):
        pen.stroke([(x + 7 * cos, 4 + 7.4 * sin) for cos, sin in _RIM], 1.7, black)
    pen.stroke([(-2, 2), (2, 2)], 1.7, black)
