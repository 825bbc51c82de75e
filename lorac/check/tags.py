"""Rules about which tags are kept, taken out, or at odds with the pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from lorac import words
from lorac.captions import KAOMOJI, normal, split_tags
from lorac.check.material import Material, counted, place_of, tags_of
from lorac.check.rule import Found
from lorac.dataset import Captioned, Folder

MOST = 0.8
"""Share of a source's captions from which something holds for nearly all of them."""
FEWEST, FEW_SILENT = 5, 2
"""Captions that such a share is taken of, and captions at most that are asked why they name no eyes."""
_EYES = re.compile(r"\beyes\b|\beye closed\b|\bwink")
_FACE = frozenset(["smile", "open mouth", "blush"])
_LOOKING = "looking "
"""Who looks somewhere has open eyes."""
_EYES_HIDDEN = (
    *("behind", "profile", "from side", "faceless", "mask", "helmet", "sunglasses", "blindfold", "covered"),
    *("head out of frame", "facing away", "back turned"),
)
_SEVERAL = re.compile(r"[2-9]\+?(girl|boy|other)s?|multiple (girls|boys|others)")
"""Whose eyes are closed, one tag cannot say."""


def binding_tags(material: Material) -> Found:
    """L003 binding-tags: `1girl` or `solo` stays in the captions

    Why: Tags that are true of nearly every picture of a source come to mean what is learnt, a character and her
    outfit or a style, and prompts with them call it (the article's finding 11).

    Before:
        [caption]
        exclude = []

    After:
        [caption]
        exclude = ["1girl", "solo"]

    Remedy: Add the tag to caption.exclude.
    """
    called = [folder for folder in material.sources if folder.spec.trigger and folder.pictures]
    for tag in words.BINDING:
        counts = [(sum(_says(captioned, tag) for captioned in folder.pictures), folder) for folder in called]
        kept = sum(count for count, folder in counts if count >= MOST * len(folder.pictures))
        if kept:
            text = f'"{tag}" stays in {counted(kept, "caption")} and binds what is learnt to it'
            yield material.recipe.where("caption.exclude"), f"{text}; add it to caption.exclude"


def _says(captioned: Captioned, tag: str) -> bool:
    return any(tag == own.casefold() for tags in captioned.readings for own in tags)


def closed_eyes(material: Material) -> Found:
    """L018 untold-closed-eyes: closed eyes in a picture that its caption does not tell

    Why: One picture with closed eyes is enough to close the eyes of the character, unless a tag says so (the
    article's finding 12). The rule sees tags that the recipe takes out, and one or two captions that tell of a face and
    neither of eyes nor of where she looks, where nearly all others name eyes; without captions it sees nothing: let
    `lorac tag` write them, and look.

    Before:
        riho_08.txt: izumi riho, orange hair, smile

    After:
        riho_08.txt: izumi riho, orange hair, closed eyes, smile

    Remedy: Keep the tag `closed eyes` in the caption, or take the picture out.
    """
    recipe = material.recipe
    for folder in material.sources:
        became = recipe.rules(folder.spec).renamed.get(words.CLOSED_EYES)
        if became is not None and not any("closed" in tag for tag in became):
            written = sum(words.CLOSED_EYES in map(str.casefold, tags_of(c)) for c in folder.pictures)
            tagged = any(captioned.tagged for captioned in folder.pictures)
            if written or tagged:
                key = "exclude" if _names_closed_eyes(recipe.caption.exclude) else "replace"
                many = counted(written, "caption") if written else "the tagger's captions"
                text = f'"{words.CLOSED_EYES}" is taken out of {many} of {folder.label}, which closes her eyes; keep it'
                yield recipe.where(f"caption.{key}"), text
        for captioned in _without_eyes(folder):
            text = 'the caption names no eyes, where others do; if they are closed, add "closed eyes"'
            yield place_of(captioned), text


def _names_closed_eyes(rules: Iterable[str]) -> bool:
    return any(normal(rule).casefold() == words.CLOSED_EYES for rule in rules)


def _without_eyes(folder: Folder) -> Iterator[Captioned]:
    """The one or two captions that tell of a face, of one person, and of no eyes, in a source that names them."""
    told = [(captioned, [tag.casefold() for tag in tags_of(captioned)]) for captioned in folder.pictures]
    told = [(captioned, tags) for captioned, tags in told if tags]
    unnamed = [(captioned, tags) for captioned, tags in told if not any(map(_names_eyes, tags))]
    if len(told) < FEWEST or len(told) - len(unnamed) < MOST * len(told):
        return
    silent = [(captioned, tags) for captioned, tags in unnamed if not any(map(_explains, tags))]
    if len(silent) <= FEW_SILENT:
        yield from (captioned for captioned, tags in silent if not _FACE.isdisjoint(tags))


def _names_eyes(tag: str) -> bool:
    return bool(_EYES.search(tag)) or tag in KAOMOJI


def _explains(tag: str) -> bool:
    """Whether a tag says why a caption names no eyes: open ones that look, hidden ones, those of several people."""
    return tag.startswith(_LOOKING) or bool(_SEVERAL.fullmatch(tag)) or any(word in tag for word in _EYES_HIDDEN)


def mirrored_sides(material: Material) -> Found:
    """L034 mirrored-sides: flip_aug with things that are on one side

    Why: flip_aug shows each picture mirrored half of the times, with the same caption. A mole under the left eye is
    then under either one, a parting changes sides, and writing becomes unreadable.

    Before:
        [train]
        flip_aug = true
        riho_01.txt: izumi riho, mole under eye, side ponytail

    After:
        [train]
        flip_aug = false

    Remedy: Take train.flip_aug out for a character whose sides differ.
    """
    if not material.recipe.train.flip_aug:
        return
    found = Counter(tag for c in material.pictures for tag in dict.fromkeys(tags_of(c)) if words.has_side(tag))
    if found:
        shown = ", ".join(f'"{tag}"' for tag, _ in found.most_common(3))
        many = sum(any(tag in found for tag in tags_of(c)) for c in material.pictures)
        verb = "has" if many == 1 else "have"
        text = (
            f"pictures are mirrored, but {counted(many, 'caption')} {verb} tags of one side: {shown}; take flip_aug out"
        )
        yield material.recipe.where("train.flip_aug"), text


def excluded_scene(material: Material) -> Found:
    """L036 excluded-scene: a tag of pose, framing, expression or background is taken out

    Why: What no tag names comes with the trigger. That is wanted of hair and eyes, which are always hers. A
    background or a pose taken out comes with her into every prompt.

    Before:
        [caption]
        exclude = ["orange hair", "white background", "standing"]

    After:
        [caption]
        exclude = ["orange hair"]

    Remedy: Exclude only what is always hers; leave in what shall change.
    """
    recipe = material.recipe
    met = Counter(tag.casefold() for c in material.pictures for tag in dict.fromkeys(tags_of(c)))
    tagged = any(captioned.tagged for captioned in material.pictures)
    gone = [(tag, "caption.exclude") for text in recipe.caption.exclude for tag in split_tags(text)]
    gone += [(normal(old), "caption.replace") for old, new in recipe.caption.replace.items() if not split_tags(new)]
    for tag, key in gone:
        many = met[tag.casefold()]
        if words.changes(tag) and tag.casefold() != words.CLOSED_EYES and (many or tagged):
            of = f" of {counted(many, 'caption')}" if many else ""
            yield recipe.where(key), f'"{tag}" is taken out{of}, so it comes with the trigger; leave it in'
