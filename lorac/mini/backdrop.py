"""The backgrounds: plain colours and four places, drawn in a 128 by 128 frame whatever the framing of the doll."""

from __future__ import annotations

from lorac.mini.pen import Colour, Pen, Point
from lorac.rng import Stream

PLAIN: dict[str, Colour] = {
    "white background": (255, 255, 255),
    "black background": (16, 14, 20),
    "grey background": (150, 150, 156),
    "blue background": (96, 160, 232),
    "pink background": (250, 186, 208),
}


def backdrop(pen: Pen, background: str, stream: Stream) -> None:
    """Covers the frame; the stream moves what may move (a horizon, the side of a tree) by a little."""
    if background in PLAIN:
        _box(pen, -1, -1, 129, 129, PLAIN[background])
        return
    mirror = stream.uniform() < 0.5
    shift = stream.uniform() * 8 - 4
    scene = pen.moved(128 if mirror else 0, 0, mirror=mirror)
    {"classroom": _classroom, "ocean": _ocean, "japanese garden": _garden, "tropical island": _island}[background](
        scene, shift
    )


def _box(pen: Pen, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
    pen.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline=None)


def _classroom(pen: Pen, shift: float) -> None:
    _box(pen, -1, -1, 129, 129, (246, 232, 196))
    _box(pen, -1, 98, 129, 129, (196, 146, 94))
    _box(pen, -1, 95, 129, 98, (140, 96, 58))
    _box(pen, -6 + shift, 12, 80 + shift, 66, (140, 96, 58))
    _box(pen, -3 + shift, 15, 77 + shift, 63, (38, 104, 80))
    _box(pen, 90 + shift, 8, 126 + shift, 70, (255, 255, 255))
    _box(pen, 93 + shift, 11, 106.5 + shift, 67, (140, 208, 250))
    _box(pen, 109.5 + shift, 11, 123 + shift, 67, (140, 208, 250))


def _ocean(pen: Pen, shift: float) -> None:
    horizon = 58 + shift
    _box(pen, -1, -1, 129, horizon, (168, 220, 252))
    _box(pen, -1, horizon, 129, 129, (30, 104, 200))
    for x, y, r in ((16, 22, 9), (27, 18, 11), (38, 23, 8), (98, 34, 7), (108, 31, 9), (117, 35, 7)):
        pen.oval(x + shift, y, r, r * 0.7, (255, 255, 255), outline=None)
    for x, y in ((4, 74), (84, 70), (30, 92), (104, 90), (8, 112), (82, 110)):
        pen.stroke(
            [(x + shift, y), (x + 8 + shift, y - 3), (x + 16 + shift, y), (x + 24 + shift, y - 3)], 2, (130, 196, 250)
        )


def _garden(pen: Pen, shift: float) -> None:
    _box(pen, -1, -1, 129, 80, (226, 240, 232))
    for x, y, r in ((8, 64, 20), (36, 70, 15), (94, 70, 15), (122, 62, 22)):
        pen.oval(x + shift, y, r, r, (70, 138, 74), outline=None)
    _box(pen, -1, 78, 129, 129, (142, 196, 96))
    _box(pen, 40, 78, 88, 129, (214, 206, 184))
    red, dark = (214, 50, 36), (60, 34, 40)
    for x in (16, 104):
        _box(pen, x + shift / 2, 18, x + 8 + shift / 2, 96, red)
        _box(pen, x - 1 + shift / 2, 92, x + 9 + shift / 2, 98, dark)
    _box(pen, 6 + shift / 2, 28, 122 + shift / 2, 34, red)
    pen.shape(
        [(-2 + shift / 2, 4), (130 + shift / 2, 4), (124 + shift / 2, 18), (4 + shift / 2, 18)], red, outline=None
    )
    pen.shape(
        [(-4 + shift / 2, 2), (132 + shift / 2, 2), (130 + shift / 2, 8), (-2 + shift / 2, 8)], dark, outline=None
    )


def _island(pen: Pen, shift: float) -> None:
    _box(pen, -1, -1, 129, 66, (134, 222, 250))
    pen.oval(26 + shift, 20, 12, 12, (255, 214, 60), outline=None)
    _box(pen, -1, 62, 129, 90, (38, 190, 200))
    pen.blob(
        [(-20, 90), (20, 83 + shift / 2), (64, 85), (108, 82), (150, 92), (150, 140), (-20, 140)],
        (248, 218, 140),
        outline=None,
    )
    pen.stroke([(112 + shift, 92), (106 + shift, 62), (109 + shift, 30)], 7, (146, 96, 52))
    top = (109 + shift, 28.0)
    for reach in ((-34, 14), (-30, -8), (-10, -24), (18, -18), (30, 10)):
        pen.blob(_leaf(top, reach), (30, 150, 70), outline=None)


def _leaf(root: Point, reach: Point) -> list[Point]:
    (x, y), (dx, dy) = root, reach
    lift = 7.0
    return [(x, y + 3), (x + dx * 0.5, y + dy * 0.5 - lift - 2), (x + dx, y + dy + 3), (x + dx * 0.5, y + dy * 0.5 + 3)]
