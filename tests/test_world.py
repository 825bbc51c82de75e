"""The paper-doll world: drawings are pure functions, captions are exact, and what a tag names is seen."""

from __future__ import annotations

import colorsys
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from lorac.mini import attributes as words
from lorac.mini.pen import Pen, part
from lorac.mini.world import Attributes, Placement, draw, sample, tags, vocabulary

Pixels = npt.NDArray[np.int16]
CENTRED = Placement(64, 31, 0.97)
DOLL = Attributes(outfit="dress", outfit_colour="red dress")


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.int16)


def still(attributes: Attributes, size: int = 128) -> Pixels:
    """The drawing without its jitter."""
    return pixels(draw(attributes, 5, size, CENTRED))


@pytest.fixture(scope="module")
def samples() -> list[Attributes]:
    return [sample(11, index) for index in range(3000)]


def test_the_random_world_is_the_one_that_the_weights_were_trained_on() -> None:
    captions = "\n".join(", ".join(tags(sample(0, index))) for index in range(2000))
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == "3ef872ac5d8a0cf9"


def test_a_drawing_is_a_function_of_attributes_and_seed() -> None:
    first = [draw(sample(3, index), index).tobytes() for index in range(12)]
    again = [draw(sample(3, index), index).tobytes() for index in reversed(range(12))]
    assert first == again[::-1]
    assert draw(DOLL, 1).tobytes() != draw(DOLL, 2).tobytes()


@pytest.mark.parametrize("size", [64, 128, 192])
def test_a_drawing_has_the_size_asked_for_and_is_opaque(size: int) -> None:
    image = draw(DOLL, 1, size)
    assert (image.mode, image.size) == ("RGBA", (size, size))
    assert pixels(image)[..., 3].min() == 255


def test_a_larger_drawing_is_the_same_drawing() -> None:
    small = pixels(draw(sample(3, 1), 1))
    large = pixels(draw(sample(3, 1), 1, 256).reduce(2))
    assert np.abs(small - large).mean() < 4


def test_a_transparent_background_is_clear_and_leaves_no_fringe() -> None:
    # Over white, a cut-out must equal the same doll drawn on white: edges that mix in black or white would differ.
    clear = draw(replace(DOLL, background="transparent background"), 5, placement=CENTRED)
    assert pixels(clear)[0, 0, 3] == 0
    white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    assert np.abs(pixels(Image.alpha_composite(white, clear)) - still(DOLL)).max() <= 4


def test_tags_are_unique_and_in_the_vocabulary(samples: list[Attributes]) -> None:
    known = set(vocabulary())
    for attributes in samples:
        caption = tags(attributes)
        assert len(set(caption)) == len(caption)
        assert set(caption) <= known
        assert tags(replace(attributes)) == caption


def test_every_tag_of_the_vocabulary_occurs(samples: list[Attributes]) -> None:
    seen = Counter(tag for attributes in samples for tag in tags(attributes))
    assert set(seen) == set(vocabulary())
    assert min(seen.values()) >= 30  # 1 % of the pictures: a model cannot learn what it never sees


@pytest.mark.parametrize(
    ("tag", "share"),
    [
        ("1girl", 0.98),
        ("solo", 0.98 * 0.98),
        ("full body", 0.98 * 0.50 + 0.02 * 0.52),
        ("cowboy shot", 0.20),
        ("close-up", 0.10),
        ("head only", 0.98 * 0.02),
        ("split view", 0.02),
        ("mannequin", 0.02),
        ("pink hair", 0.98 / 8),
        ("twintails", 0.98 / 5),
        ("green eyes", 0.98 * 0.9 / 6),
        ("closed eyes", 0.98 * 0.1),
        ("kimono", (0.98 * 0.88 + 0.02 * 0.9) / 9),
        ("white background", 0.24),
        ("outdoors", 0.34),
        ("smile", 0.98 * 0.4),
    ],
)
def test_frequencies(samples: list[Attributes], tag: str, share: float) -> None:
    n = len(samples)
    count = sum(tag in tags(attributes) for attributes in samples)
    assert abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [("hair_colour", "hair_style"), ("eye_colour", "outfit"), ("pose", "background"), ("outfit", "framing")],
)
def test_attributes_are_independent(samples: list[Attributes], one: str, other: str) -> None:
    """Pearson's chi-squared statistic lies within four standard deviations of its mean under independence."""
    whole = [attributes for attributes in samples if not attributes.mannequin]
    table = Counter((getattr(attributes, one), getattr(attributes, other)) for attributes in whole)
    rows = Counter(getattr(attributes, one) for attributes in whole)
    columns = Counter(getattr(attributes, other) for attributes in whole)
    statistic = sum(
        (table[row, column] - rows[row] * columns[column] / len(whole)) ** 2
        / (rows[row] * columns[column] / len(whole))
        for row in rows
        for column in columns
    )
    freedom = (len(rows) - 1) * (len(columns) - 1)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


CHANGES: list[tuple[str, Mapping[str, object]]] = [
    *[("hair", {"hair_colour": colour}) for colour in words.HAIR_COLOURS[1:]],
    *[("hair", {"hair_style": style}) for style in words.HAIR_STYLES[1:]],
    *[("face", {"eye_colour": colour}) for colour in words.EYE_COLOURS[1:]],
    *[("face", {"expression": mouth}) for mouth in ("open mouth", "")],
    ("face", {"closed_eyes": True}),
    ("face", {"blush": True}),
    ("face", {"accessories": ("glasses",)}),
    ("head", {"accessories": ("red bow",)}),
    ("body", {"dark_skin": True}),
    *[("body", {"outfit": outfit, "outfit_colour": colours[0]}) for outfit, colours in words.OUTFITS.items()],
    *[("body", {"outfit_colour": colour}) for colour in words.OUTFITS["dress"][1:]],
    *[("body", {"pose": pose}) for pose in ("sitting", "dancing", "jumping")],
    *[("page", {"background": name}) for name, _ in words.BACKGROUNDS[1:]],
    ("page", {"mannequin": True}),
]
LEAST = {"hair": 400, "face": 12, "head": 60, "body": 400, "page": 800}
"""How many of the 16384 pixels must change clearly, by what changes. A mouth is small; nothing else is."""
CHANGES = [change for change in CHANGES if change[1] != {"outfit": "dress", "outfit_colour": "red dress"}]


@pytest.mark.parametrize(("where", "change"), CHANGES, ids=lambda value: str(value))
def test_changing_one_attribute_changes_the_picture(where: str, change: Mapping[str, object]) -> None:
    changed = replace(DOLL, **change)  # type: ignore[arg-type]
    assert tags(changed) != tags(DOLL)
    different = np.abs(still(changed) - still(DOLL)).max(axis=2) > 60
    assert different.sum() >= LEAST[where]
    if where == "face":
        face = np.zeros_like(different)
        face[20:54, 40:88] = True
        assert not (different & ~face).any()
    if where in ("face", "head", "hair"):
        assert not different[110:].any()


@pytest.mark.parametrize(
    ("field", "values", "least"),
    [
        ("hair_colour", words.HAIR_COLOURS, 400),
        ("hair_style", words.HAIR_STYLES, 200),
        ("eye_colour", words.EYE_COLOURS, 12),
        ("expression", [name for name, _ in words.MOUTHS], 12),
        ("pose", [name for name, _ in words.POSES], 400),
        ("background", [name for name, _ in words.BACKGROUNDS], 800),
    ],
)
def test_any_two_values_of_an_attribute_look_different(field: str, values: Sequence[str], least: int) -> None:
    pictures = [still(replace(DOLL, **{field: value})) for value in values]  # type: ignore[arg-type]
    for one, other in combinations(pictures, 2):
        assert (np.abs(one - other).max(axis=2) > 60).sum() >= least


def test_any_two_framings_look_different() -> None:
    pictures = [pixels(draw(replace(DOLL, framing=framing), 5)) for framing, _ in words.FRAMINGS]
    for one, other in combinations(pictures, 2):
        assert (np.abs(one - other).max(axis=2) > 60).sum() > 1500


def named(colour: tuple[int, ...]) -> set[str]:
    """Names that a person may give a colour, from its hue and lightness; independent of the world's palettes."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in colour[:3]))
    if min(colour[:3]) > 220:
        return {"white"}
    if lightness < 0.25:
        return {"black"} if saturation < 0.3 else {"black", "brown"}
    degrees = hue * 360
    bands = {"red": (345, 375), "blue": (205, 235), "green": (90, 165), "purple": (265, 300), "yellow": (40, 60)}
    inside = {name for name, (low, high) in bands.items() if low <= degrees <= high or low <= degrees + 360 <= high}
    if 35 <= degrees <= 55 and lightness > 0.5:
        inside.add("blonde")
    if 10 <= degrees <= 40:
        inside.add("brown" if lightness < 0.45 else "orange")
    if 315 <= degrees <= 350 and lightness > 0.65:
        inside.add("pink")
    return inside


@pytest.mark.parametrize("colour", [*words.HAIR_COLOURS, "orange"])
@pytest.mark.parametrize("style", words.HAIR_STYLES)
def test_hair_has_the_colour_that_its_tag_names(colour: str, style: str) -> None:
    crown = still(replace(DOLL, hair_colour=colour, hair_style=style))[15, 74]
    assert colour in named(tuple(int(channel) for channel in crown))


@pytest.mark.parametrize("colour", words.EYE_COLOURS)
def test_eyes_have_the_colour_that_their_tag_names(colour: str) -> None:
    eye = still(replace(DOLL, eye_colour=colour))[27:41, 49:62].reshape(-1, 4)
    names = Counter(name for pixel in eye for name in named(tuple(int(channel) for channel in pixel)))
    assert names[colour] >= 15
    assert max((names[other], other) for other in words.EYE_COLOURS if other != "brown" or colour == other)[1] == colour


@pytest.mark.parametrize("outfit", ["dress", "kimono", "swimsuit", "capelet", "hoodie"])
def test_outfits_have_the_colour_that_their_tag_names(outfit: str) -> None:
    for tag in words.OUTFITS[outfit]:
        picture = still(replace(DOLL, outfit=outfit, outfit_colour=tag, background="grey background"))
        chest = [tuple(int(channel) for channel in pixel) for pixel in picture[56:82, 56:73].reshape(-1, 4)]
        assert sum(tag.split()[0] in named(pixel) for pixel in chest) > 0.3 * len(chest), tag


def test_captions_name_only_what_is_seen() -> None:
    hidden = replace(DOLL, framing="close-up", closed_eyes=True, pose="dancing")
    assert not {"dress", "red dress", "dancing", "arms up", "blue eyes", "looking at viewer"} & set(tags(hidden))
    upper = tags(replace(DOLL, framing="upper body", outfit="school uniform", outfit_colour="red skirt"))
    assert "school uniform" in upper
    assert not {"red skirt", "standing"} & set(upper)
    assert not {"1girl", "solo", "long hair", "blue eyes", "smile"} & set(tags(replace(DOLL, mannequin=True)))
    assert "solo" not in tags(replace(DOLL, framing="split view"))


def test_a_mannequin_looks_the_same_whatever_its_face() -> None:
    face = replace(DOLL, hair_colour="pink", eye_colour="red", blush=True, accessories=("glasses",), mannequin=True)
    assert np.array_equal(still(face), still(replace(DOLL, mannequin=True)))


def test_a_head_only_picture_has_no_body() -> None:
    head = replace(DOLL, framing="head only", hair_style="short hair", background="grey background")
    picture = still(head)
    assert (picture[64:, :, :3] == picture[-1, 0, :3]).all()


def test_a_pen_places_scales_turns_and_mirrors() -> None:
    canvas = Image.new("RGB", (100, 100))
    pen = Pen(ImageDraw.Draw(canvas), 2).moved(25, 25, degrees=90, scale=2, mirror=True)
    pen.oval(-5, 0, 1, 1, (255, 0, 0), outline=None)
    ys, xs = np.nonzero(pixels(canvas)[..., 0])
    # Mirrored, (-5, 0) is (5, 0); a quarter turn clockwise makes it (0, 5); 2 * (25 + 2 * 0, 25 + 2 * 5) = (50, 70).
    assert abs(xs.mean() - 50) < 0.6
    assert abs(ys.mean() - 70) < 0.6


def test_part_of_a_line() -> None:
    line = [(0.0, 0.0), (2.0, 0.0), (2.0, 4.0)]
    assert part(line, 0.25, 1.0) == [(1.0, 0.0), (2.0, 0.0), (2.0, 4.0)]
    assert part(line, 0.5, 0.75) == [(2.0, 0.0), (2.0, 2.0)]


def test_attributes_are_all_used() -> None:
    """Every field is changed by some case above, or by the framing and gaze tests."""
    covered = {name for _, change in CHANGES for name in change} | {"framing", "gaze"}
    assert covered == {field.name for field in fields(Attributes)}
    aside = replace(DOLL, gaze="looking to the side")
    assert (np.abs(pixels(draw(aside, 5)) - pixels(draw(DOLL, 5))).max(axis=2) > 60).sum() > 50
