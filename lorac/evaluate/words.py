"""What danbooru's tags are signs of: a head, a body, a number of people. Pure functions of a tag's name.

Names are in normal form and lower case. The lists were made from the 6,900 general tags of a WD14 vocabulary (version
1.4) and from that of the embedded tagger; most tags of clothes say what they are in one of their words.
"""

from __future__ import annotations

import re

_PEOPLE = re.compile(r"\d\+?(girl|boy|other)s?|multiple (girls|boys|others)|solo( focus)?|no humans")
_PERSON = re.compile(r"\d\+?(girl|boy)s?|multiple (girls|boys)")
_SEVERED = frozenset({"disembodied head", "severed head"})
"""WD14 has them, the embedded tagger has none. They are rare in what WD14 was trained with (2,324 and 1,311 pictures;
"upper body" has 434,670), so most heads go without."""

_HEAD_WORDS = "hair eyes eye face bangs twintails ponytail braid braids bun smile mouth"
_FRAMINGS = """
full body, upper body, lower body, cowboy shot, close-up, portrait, wide shot, very wide shot, head out of frame,
feet out of frame, foot out of frame"""
_BODY_WORDS = """
shirt t-shirt skirt miniskirt dress sundress gown uniform serafuku kimono yukata hakama haori obi sash sleeve sleeves
sleeveless shorts pants jeans trousers overalls jacket coat labcoat blazer suit formal casual sweater hoodie cardigan
vest turtleneck blouse camisole apron cape capelet cloak robe poncho shawl swimsuit swimwear bikini leotard bodysuit
pajamas bloomers buruma sportswear armor breastplate belt suspenders corset collar neckerchief necktie bowtie ascot
pocket buttons epaulettes trim plaid cuffs gloves mittens gauntlets shoes boots footwear socks thighhighs kneehighs
legwear leggings tights pantyhose sandals sneakers loafers slippers clothes clothing costume outfit maid miko nun
dancer cheerleader waitress nurse top heels strapless halterneck wristband armband
torso shoulder shoulders collarbone chest arm arms armpits elbow wrist wrists hand hands finger fingers waist midriff
navel stomach hip hips leg legs thigh thighs knee knees ankle foot feet barefoot tail
standing sitting kneeling lying squatting crouching leaning walking running jumping dancing fighting riding straddling
fours swimming wading wariza seiza yokozuwari contrapposto stretching stretch salute holding"""
_HEADWEAR = """
hat cap headwear headdress headband hairband hairclip ornament eyewear glasses sunglasses goggles mask helmet veil crown
tiara earrings"""

_HEAD, _BODY, _WORN_ON_THE_HEAD = (frozenset(text.split()) for text in (_HEAD_WORDS, _BODY_WORDS, _HEADWEAR))
_FRAMED = frozenset(" ".join(tag.split()) for tag in _FRAMINGS.split(","))


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
    return name in _FRAMED or (words[-1] not in _WORN_ON_THE_HEAD and not _BODY.isdisjoint(words))


def _subject(name: str) -> list[str]:
    """The words of a tag; of "hair over shoulder" and the like only what lies over something."""
    words = name.replace("(", " ").replace(")", " ").split()
    over = words.index("over") if "over" in words else 0
    return words[:over] if over and words[over - 1] in _HEAD else words


def is_severed(name: str) -> bool:
    """Whether a tag itself says that there is a head without a body."""
    return name in _SEVERED
