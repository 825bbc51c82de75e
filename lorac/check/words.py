"""Tags that say what a picture shows, by kind: in the words of booru sites, which WD14 taggers write.

No list of words is whole. Clothes are known by a tag's last word, so that "plaid skirt" is a skirt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorac.captions import split_tags


def _set(text: str) -> frozenset[str]:
    return frozenset(split_tags(text))


BINDING = ("1girl", "1boy", "solo")
"""Tags of every picture of a character; left in, they come to mean her outfit (the article's finding 11)."""
CLOSED_EYES = "closed eyes"
MANNEQUIN = _set("mannequin, faceless, faceless female, faceless male, headless, clothes only")
"""An outfit shown without its wearer."""
_CLOTHES = _set(
    "apron, armor, belt, bikini, blazer, bloomers, blouse, bodysuit, boots, camisole, cape, capelet, cardigan, "
    "cheongsam, cloak, clothes, coat, corset, costume, dancer, dress, gloves, gown, hakama, hoodie, jacket, jeans, "
    "jumpsuit, kimono, leggings, leotard, maid, miniskirt, neckerchief, necktie, overalls, overcoat, pajamas, pants, "
    "pantyhose, pinafore, plaid, poncho, robe, sandals, sarong, scarf, serafuku, shirt, shoes, shorts, skirt, "
    "sleeveless, sleeves, sneakers, socks, suit, sweater, sweatshirt, swimsuit, tabard, thighhighs, trousers, tunic, "
    "turtleneck, tuxedo, uniform, vest, waistcoat, yukata"
)
"""Last words of tags."""
_FRAMINGS = _set("full body, cowboy shot, upper body, lower body, split view, multiple views")
_CLOSE = _set("portrait, close-up, head only")
_POSES = _set(
    "standing, sitting, kneeling, squatting, crouching, lying, on back, on side, walking, running, jumping, dancing, "
    "flying, wariza, seiza, leaning forward, arms up, arm up, outstretched arms, spread arms, crossed arms, "
    "arms behind back, hand on hip, hands on hips"
)
_BELOW_THE_NECK = _set("legs, thighs, barefoot, feet, collarbone, bare shoulders, midriff, navel, back")
_GAZES = _set("looking at viewer, looking to the side, looking back, looking away, looking up, looking down")
_VIEWS = _set("from behind, from side, from above, from below, profile, three quarter view")
_MOUTHS = _set("smile, open mouth, closed mouth, frown, grin, laughing, crying, angry, surprised, sad")
_PLACES = _set("outdoors, indoors, classroom, school, ocean, beach, forest, city, sky, night, day")
_BODY = _FRAMINGS | _POSES | _BELOW_THE_NECK
_CHANGING = _FRAMINGS | _CLOSE | _POSES | _GAZES | _VIEWS | _MOUTHS | _PLACES | {CLOSED_EYES}
_HEAD = _CLOSE | _GAZES | _MOUTHS | {CLOSED_EYES}
_HEAD_ENDS = ("hair", "eyes", "bun", "buns", "twintails", "ponytail", "bangs", "braid", "braids", "ahoge")
_SIDED = re.compile(
    r"\b(left|right|asymmetrical|single|one|text|eyepatch)\b|mole under|side (ponytail|braid|bun|up)|speech bubble"
)
_NOT_SIDED = re.compile(r"\bone[- ]piece|one eye closed|\bsingle (stripe|vertical)|right to left")


def of_tags(tags: Iterable[str]) -> frozenset[str]:
    """The single words of tags in small letters, and those that clothes are known by."""
    return _CLOTHES.union(*(tag.casefold().split() for tag in tags))


def clothes(tags: Iterable[str]) -> frozenset[str]:
    """Those of the tags that name something to wear."""
    return frozenset(tag for tag in map(str.casefold, tags) if tag.split()[-1] in _CLOTHES)


def shows_body(tags: Iterable[str]) -> bool:
    """Whether a tag says that more than a head is to be seen: a framing, a pose, clothes."""
    folded = frozenset(map(str.casefold, tags))
    return bool(folded & _BODY or clothes(folded))


def shows_head(tags: Iterable[str]) -> bool:
    return any(tag in _HEAD or tag.endswith(_HEAD_ENDS) for tag in map(str.casefold, tags))


def is_close(tags: Iterable[str]) -> bool:
    """Whether a tag says that the picture shows a head and no more."""
    return any(tag.casefold() in _CLOSE for tag in tags)


def changes(tag: str) -> bool:
    """Whether a tag names what shall differ from picture to picture: framing, pose, gaze, expression, background."""
    folded = tag.casefold()
    return folded in _CHANGING or folded.endswith("background")


def has_side(tag: str) -> bool:
    """Whether a tag speaks of something that is on one side, or of writing: a mirrored picture shows it wrongly."""
    folded = tag.casefold()
    return bool(_SIDED.search(folded)) and not _NOT_SIDED.search(folded)
