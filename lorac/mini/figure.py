"""The body: poses, limbs and how clothes lie on them.

The origin is the centre of the head; shoulders are at y = 23, the waist at 40, hips at 50, soles at 96.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorac.mini.attributes import Attributes
from lorac.mini.head import skin
from lorac.mini.pen import Colour, Pen, Point, mirrored, part, shade
from lorac.mini.wardrobe import Hem, Outfit, outfit_of

Line = tuple[Point, ...]


@dataclass(frozen=True)
class Pose:
    """Arms (shoulder, elbow, hand) and legs (hip, knee, ankle); how far a skirt can fall, and how much it spreads."""

    arms: tuple[Line, Line]
    legs: tuple[Line, Line]
    longest_skirt: float = 60.0
    spread: float = 0.0


def _both(points: Line) -> tuple[Line, Line]:
    return points, tuple((-x, y) for x, y in points)


POSES: dict[str, Pose] = {
    "standing": Pose(_both(((11, 26), (16, 38), (19, 50))), _both(((5.5, 50), (6, 70), (6.5, 90)))),
    "sitting": Pose(_both(((11, 26), (16, 39), (9, 50))), _both(((6, 52), (7, 60), (7, 80))), 17, 5),
    "dancing": Pose(
        _both(((11, 26), (26, 19), (30, -6))), (((5, 50), (17, 66), (10, 82)), ((-5, 50), (-6, 70), (-6, 90))), 28, 4
    ),
    "jumping": Pose(_both(((11, 26), (24, 27), (35, 14))), _both(((6, 50), (14, 63), (20, 76))), 20, 5),
}


def body(pen: Pen, a: Attributes) -> None:
    """Legs, torso, outfit and arms, in the order in which they cover each other."""
    outfit, pose, flesh = outfit_of(a), POSES[a.pose], skin(a)
    hem = Hem(min(outfit.skirt, pose.longest_skirt), outfit.flare + pose.spread)
    if a.pose == "sitting":
        _bench(pen)
    for leg in pose.legs:
        _leg(pen, outfit, leg, flesh)
    pen.limb([(0, 18), (0, 25)], 8, flesh)
    pen.blob(mirrored([(0, 22), (9, 22.5), (12.5, 26), (10.5, 40), (12, 52), (0, 54)]), outfit.top)
    if outfit.skirt:
        pen.blob(_skirt(hem), outfit.skirt_colour or outfit.top)
    if outfit.details:
        outfit.details(pen, hem)
    for arm in pose.arms:
        _arm(pen, outfit, arm, flesh)
    if outfit.over:
        outfit.over(pen)


def _bench(pen: Pen) -> None:
    wood = (186, 120, 66)
    pen.shape([(-29, 58), (29, 58), (29, 84), (-29, 84)], shade(wood, 0.75))
    pen.shape([(-32, 51), (32, 51), (32, 59), (-32, 59)], wood)


def _skirt(hem: Hem) -> list[Point]:
    length, flare = hem
    low = 40 + length
    middle = ((11 + flare) / 2 + 2, 40 + length * 0.6)
    return mirrored([(0, 40), (9, 40), (11.5, 42), middle, (flare, low - 1), (flare * 0.6, low + 1), (0, low + 1.5)])


def _leg(pen: Pen, outfit: Outfit, leg: Line, flesh: Colour) -> None:
    pen.limb(leg, 8.5, flesh)
    if outfit.socks:
        pen.limb(part(leg, 1 - outfit.socks, 1), 8.5, outfit.sock_colour)
    if outfit.trousers:
        pen.limb(part(leg, 0, outfit.trousers), outfit.trousers_width, outfit.trousers_colour)
    if outfit.shoes and outfit.boots:
        pen.limb(part(leg, 0.55, 1), 10, outfit.shoes)
    x, y = leg[-1]
    pen.oval(x + (1.2 if x > 0 else -1.2), y + 1.5, 6.2, 4.4, outfit.shoes or flesh)


def _arm(pen: Pen, outfit: Outfit, arm: Line, flesh: Colour) -> None:
    pen.limb(arm, 6.4, flesh)
    if not outfit.sleeve:
        return
    if outfit.hanging_sleeves:
        pen.blob(_hanging_sleeve(arm), outfit.top)
    pen.limb(part(arm, 0, outfit.sleeve), outfit.sleeve_width, outfit.top)
    if outfit.wristband:
        pen.limb(part(arm, 0.8, 0.84), 7.5, outfit.wristband)


def _hanging_sleeve(arm: Line) -> list[Point]:
    upper, *_, wrist = part(arm, 0.3, 0.92)
    (x0, y0), (x1, y1) = upper, wrist
    out = 1 if x1 > 0 else -1
    top = [(x0 - out * 3, y0), (x1 - out * 3, y1 - 2), (x1 + out * 4, y1 + 1)]
    return [*top, (x1 + out * 7, y1 + 19), (x1 - out * 4, y1 + 20), (x0 - out * 2, y0 + 10)]
