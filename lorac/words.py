"""What danbooru's tags are signs of: a head, a body, clothes, a framing, what changes from picture to picture.

Pure functions of names, for measures and for `lorac check`. Names are in normal form, and in small letters where a
function takes a single one. The lists were made from the 6,900 general tags of a WD14 vocabulary (version 1.4) and from
that of the embedded tagger; most tags of clothes say what they are in one of their words. No list of words is whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BINDING = ("1girl", "1boy", "solo")
"""Tags of every picture of a character; left in, they come to mean her outfit (the article's finding 11)."""
CLOSED_EYES = "closed eyes"


def _names(text: str) -> frozenset[str]:
    return frozenset(" ".join(name.split()) for name in text.split(","))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PEOPLE = re.compile(r"\d\+?(girl|boy|other)s?|multiple (girls|boys|others)|solo( focus)?|no humans")
_PERSON = re.compile(r"\d\+?(girl|boy)s?|multiple (girls|boys)")
_SEVERED = frozenset({"disembodied head", "severed head"})
"""WD14 has them, the embedded tagger has none. They are rare in what WD14 was trained with (2,324 and 1,311 pictures;
"upper body" has 434,670), so most heads go without."""

_HEAD = _words("hair eyes eye face bangs twintails ponytail braid braids bun buns ahoge smile mouth")
_HEADWEAR = _words(
    """hat cap headwear headdress headband hairband hairclip ornament eyewear glasses sunglasses goggles mask helmet
    veil crown tiara earrings"""
)
_CLOTHES = _words(
    """shirt t-shirt skirt miniskirt dress sundress gown uniform serafuku kimono yukata hakama haori obi sash sleeve
    sleeves sleeveless shorts pants jeans trousers overalls jacket coat labcoat blazer suit formal casual sweater
    hoodie cardigan vest turtleneck blouse camisole apron cape capelet cloak robe poncho shawl swimsuit swimwear
    bikini leotard bodysuit pajamas bloomers buruma sportswear armor breastplate belt suspenders corset collar
    neckerchief necktie bowtie ascot pocket buttons epaulettes trim plaid cuffs gloves mittens gauntlets shoes
    boots footwear socks thighhighs kneehighs legwear leggings tights pantyhose sandals sneakers loafers slippers
    clothes clothing costume outfit maid miko nun dancer cheerleader waitress nurse top heels strapless halterneck
    wristband armband cheongsam jumpsuit overcoat pinafore sarong sweatshirt tabard tunic tuxedo waistcoat"""
)
_LIMBS = _words(
    """torso shoulder shoulders collarbone chest arm arms armpits elbow wrist wrists hand hands finger fingers waist
    midriff navel stomach hip hips leg legs thigh thighs knee knees ankle foot feet barefoot tail"""
)
_POSES = _words(
    """standing sitting kneeling lying squatting crouching leaning walking running jumping dancing fighting riding
    straddling fours swimming wading wariza seiza yokozuwari contrapposto stretching stretch salute holding flying"""
)
_BODY = _CLOTHES | _LIMBS | _POSES
MANNEQUIN = _names("mannequin, faceless, faceless female, faceless male, headless, clothes only")
"""An outfit shown without its wearer."""
_CLOSE = _names("portrait, close-up, head only")
"""A head and its shoulders: not severed, and no body either."""
_FRAMINGS = _names(
    """portrait, close-up, full body, upper body, lower body, cowboy shot, wide shot, very wide shot,
    head out of frame, feet out of frame, foot out of frame"""
)
_GAZES = _names("looking at viewer, looking to the side, looking back, looking away, looking up, looking down")
_MOUTHS = _names("smile, open mouth, closed mouth, frown, grin, laughing, crying, angry, surprised, sad")
_ARMS = _names(
    """on back, on side, arms up, arm up, outstretched arms, spread arms, crossed arms, arms behind back, hand on hip,
    hands on hips"""
)
_VIEWS = _names(
    "split view, multiple views, from behind, from side, from above, from below, profile, three quarter view"
)
_PLACES = _names("outdoors, indoors, classroom, school, ocean, beach, forest, city, sky, night, day")
_CHANGING = _FRAMINGS | _CLOSE | _ARMS | _GAZES | _MOUTHS | _VIEWS | _PLACES | {CLOSED_EYES}
_SIDED = re.compile(
    r"\b(left|right|asymmetrical|single|one|text|eyepatch)\b|mole under|side (ponytail|braid|bun|up)|speech bubble"
)
_NOT_SIDED = re.compile(r"\bone[- ]piece|one eye closed|\bsingle (stripe|vertical)|right to left")


def counts_people(name: str) -> bool:
    """Whether a tag counts people and says nothing else, such as "1girl" and "solo"."""
    return bool(_PEOPLE.fullmatch(name))


def is_head(name: str) -> bool:
    """Whether a tag is only given to what has a face or hair."""
    return bool(_PERSON.fullmatch(name)) or _subject(name)[-1] in _HEAD


def is_body(name: str) -> bool:
    """Whether a tag says that there is a body, or how much of it: clothes, limbs, a pose, a framing.

    What can be worn on a head that has no body does not: "maid headdress" is no sign of a maid. Nor does "hair over
    shoulder": it names how hair falls, as long hair of a cut-out head does too, and a shoulder that is really to be
    seen has other signs: "upper body", "bare shoulders", a collar. Hands do: "hands in hair" and "hand on own face"
    are only given where hands are to be seen.
    """
    words = _subject(name)
    return name in _FRAMINGS or (words[-1] not in _HEADWEAR and not _BODY.isdisjoint(words))


def _subject(name: str) -> list[str]:
    """The words of a tag; of "hair over shoulder" and the like only what lies over something."""
    words = name.replace("(", " ").replace(")", " ").split()
    over = words.index("over") if "over" in words else 0
    return words[:over] if over and words[over - 1] in _HEAD else words


def is_severed(name: str) -> bool:
    """Whether a tag itself says that there is a head without a body."""
    return name in _SEVERED


def of_tags(tags: Iterable[str]) -> frozenset[str]:
    """The single words of tags in small letters, and those that clothes are known by."""
    return _CLOTHES.union(*(tag.casefold().split() for tag in tags))


def clothes(tags: Iterable[str]) -> frozenset[str]:
    """Those of the tags that name something to wear: a tag's last word says so, a "plaid skirt" is a skirt."""
    return frozenset(tag for tag in map(str.casefold, tags) if tag.split()[-1] in _CLOTHES)


def shows_body(tags: Iterable[str]) -> bool:
    """Whether a tag says that more than a head and its shoulders is to be seen."""
    return any(is_body(tag) and tag not in _CLOSE for tag in map(str.casefold, tags))


def shows_head(tags: Iterable[str]) -> bool:
    """Whether a tag speaks of a face or hair; that there is a person does not say so."""
    signs = _CLOSE | _GAZES | _MOUTHS
    return any(tag in signs or _subject(tag)[-1] in _HEAD for tag in map(str.casefold, tags))


def is_close(tags: Iterable[str]) -> bool:
    """Whether a tag says that the picture shows a head and no more."""
    return any(tag.casefold() in _CLOSE for tag in tags)


def changes(tag: str) -> bool:
    """Whether a tag names what shall differ from picture to picture: framing, pose, gaze, expression, background."""
    folded = tag.casefold()
    return folded in _CHANGING or folded.endswith("background") or folded.split()[0] in _POSES


def has_side(tag: str) -> bool:
    """Whether a tag speaks of something that is on one side, or of writing: a mirrored picture shows it wrongly."""
    folded = tag.casefold()
    return bool(_SIDED.search(folded)) and not _NOT_SIDED.search(folded)
