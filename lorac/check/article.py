"""Rules from the article's findings about the choice of pictures: heads only, outfits, places in the frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations

from lorac import words
from lorac.check.material import Material, counted, tags_of
from lorac.check.rule import Found
from lorac.check.triggers import triggers_of
from lorac.dataset import Folder

WEAK_ENOUGH = 0.7
"""The strength up to which the article's severed heads stayed away (finding 6)."""
LEFT, RIGHT, SPREAD = 0.42, 0.58, 0.2
"""Shares of the frame beyond which a figure stands aside, and the share of pictures on either side that is a spread."""
ALIKE = 0.8
"""Mean overlap of the clothes of two pictures from which they wear the same."""
FEW, COMPARED = 4, 60
"""Pictures needed to speak of a habit, and pictures at most that are compared with each other."""
Outfit = frozenset[str]


def heads_without_regularisation(material: Material) -> Found:
    """L014 heads-without-regularisation: only heads, and no ordinary pictures beside them

    Why: Material that shows heads and nothing else teaches the trigger that there is no body: severed heads. Without
    regularisation pictures, or with transparent ones, which show nothing, the article got them; with 400 ordinary
    pictures of `1girl` they were almost gone (finding 4). Heads are told by compact outlines, of cut-outs or before a
    plain background, that end above the lower border, and by captions without a word of pose, framing or clothes.

    Before:
        [[regularisation]]
        generate = { transparent = true, count = 400 }

    After:
        [[regularisation]]
        generate = { prompt = "1girl", count = 400 }

    Remedy: Add a [[regularisation]] table with ordinary pictures of the class, bodies and backgrounds included.
    """
    if not material.heads_only:
        return
    if not material.regularisation:
        text = "there are only heads to learn from and no regularisation pictures, which gives severed heads"
        yield material.sources[0].spec.where, f"{text}; add ordinary pictures, as [[regularisation]]"
    elif all(_shows_nothing(material, folder) for folder in material.regularisation):
        text = "there are only heads to learn from, and the regularisation pictures are transparent: severed heads"
        yield material.regularisation[0].spec.where, f"{text}; take ordinary pictures of the class"


def _shows_nothing(material: Material, folder: Folder) -> bool:
    """Whether all pictures of a folder are transparent all over."""
    if folder.spec.generate:
        return folder.spec.generate.transparent
    looks = material.transparent(folder)
    return len(looks) == len(folder.pictures) and all(look.empty for look in looks.values())


def heads_at_full_alpha(material: Material) -> Found:
    """L015 heads-at-full-alpha: only heads, and alpha as large as dim

    Why: At alpha = dim the LoRA works with full strength, and with heads only it overrules what the base knows of
    bodies. With alpha 1 at dim 128 the article had no severed heads at all (finding 5); a finished LoRA used at 0.5
    to 0.7 has fewer of them, too (finding 6).

    Before:
        [network]
        dim = 128
        alpha = 128

    After:
        [network]
        dim = 128
        alpha = 1

    Remedy: Set network.alpha = 1, or output.preferred_weight to at most 0.7.
    """
    weight, network = material.recipe.output.preferred_weight, material.recipe.network
    weak = weight is not None and weight <= WEAK_ENOUGH
    if material.heads_only and material.strength >= 1 and network.alpha > 1 and not weak:
        text = f"there are only heads to learn from, and alpha {network.alpha:g} is not below dim {network.dim}"
        yield material.recipe.where("network.alpha"), f"{text}: severed heads; set alpha = 1"


def spread(material: Material) -> Found:
    """L017 off-centre: the character stands left in some pictures and right in others

    Why: Where the place of the figure varies, the LoRA draws her in both places at once: a split view (the article's
    finding 3). Seen are cut-outs and figures before a plain background.

    Before:
        riho_01.png: the figure at the left
        riho_02.png: the figure at the right

    After:
        riho_01.png: the figure in the middle
        riho_02.png: the figure in the middle

    Remedy: Crop the pictures so that the figure is in the middle, and take `split view` into the negative prompt.
    """
    for folder in material.sources:
        looks = [material.looks.get(captioned.picture.path) for captioned in folder.pictures]
        centres = [look.figure.centre for look in looks if look is not None and look.figure is not None]
        left, right = sum(centre < LEFT for centre in centres), sum(centre > RIGHT for centre in centres)
        if len(centres) >= FEW and min(left, right) >= max(2, SPREAD * len(centres)):
            text = f"the figure is left of the middle in {left} and right of it in {right} of {len(centres)} pictures"
            yield folder.spec.where, f"{text}, which gives split views; crop them around it"


def one_mannequin_outfit(material: Material) -> Found:
    """L019 one-mannequin-outfit: outfits on a mannequin, but only one

    Why: Outfits on a faceless mannequin, as concepts of their own beside the heads, teach what may be exchanged. With
    a single outfit, or with outfits that are alike, there is nothing to exchange, and the trick has no effect (the
    article's finding 1).

    Before:
        trigger = ["izumi riho"]
        trigger = ["rihocloth"]

    After:
        trigger = ["izumi riho"]
        trigger = ["rihocloth"]
        trigger = ["kkdancer"]

    Remedy: Add a source with another outfit on the mannequin, or leave the mannequin out.
    """
    dolls = [folder for folder in material.sources if is_mannequin(folder)]
    if not dolls or len(dolls) == len(material.sources):
        return
    worn = [frozenset[str]().union(*outfits([folder])) for folder in dolls]
    if len({folder.spec.trigger for folder in dolls}) == 1:
        text = f"{dolls[0].label} is the only outfit on a mannequin, which has no effect; add another outfit"
        yield dolls[0].spec.where, text
    elif all(worn) and all(_overlap(a, b) >= ALIKE for a, b in combinations(worn, 2)):
        text = f"the outfits of {dolls[0].label} and {dolls[1].label} have the same tags; take outfits that differ"
        yield dolls[1].spec.where, text


def one_outfit(material: Material) -> Found:
    """L020 one-outfit: the character wears the same in all pictures

    Why: What never varies is learnt as part of her. With one outfit its clothes come with every prompt and hardly
    swap; outfits that differ prevent that and over-fitting (the article's finding 2). Sources that share no trigger are
    judged apart. One among several whose clothes are mostly taken out of its captions is an outfit with a word of its
    own, and left alone.

    Before:
        riho_01.txt: izumi riho, cardigan, plaid skirt, standing
        riho_02.txt: izumi riho, cardigan, plaid skirt, sitting

    After:
        riho_01.txt: izumi riho, cardigan, plaid skirt, standing
        riho_02.txt: izumi riho, kimono, sitting

    Remedy: Add pictures in other clothes. If she shall always wear this, put L020 into check.ignore.
    """
    called = _by_trigger([folder for folder in material.sources if not is_mannequin(folder)])
    for folders in called:
        worn = list(outfits(folders))
        if len(worn) < max(FEW, sum(len(folder.pictures) for folder in folders) / 2):
            continue
        step = -(-len(worn) // COMPARED)
        pairs = [_overlap(a, b) for a, b in combinations(worn[::step], 2)]
        tags = sorted(tag for tag in frozenset[str]().union(*worn) if sum(tag in own for own in worn) * 2 > len(worn))
        if sum(pairs) >= ALIKE * len(pairs) and not (len(called) > 1 and _is_outfit(material, folders[0], tags)):
            text = f"{counted(len(worn), 'picture')} show the same clothes ({', '.join(tags[:4])})"
            yield folders[0].spec.where, f"{text}, which will hardly swap; add pictures in others"


def _by_trigger(sources: Sequence[Folder]) -> list[list[Folder]]:
    """The sources of each thing that is called: those that share a trigger, directly or through others."""
    groups: list[list[Folder]] = []
    for folder in sources:
        own = triggers_of([folder])
        same = [group for group in groups if own & triggers_of(group) or (not own and not triggers_of(group))]
        groups = [group for group in groups if group not in same] + [[*chain(*same), folder]]
    return groups


def _is_outfit(material: Material, folder: Folder, clothes: Sequence[str]) -> bool:
    """Whether the recipe takes most of the clothes out of the captions, so that they come with the trigger."""
    renamed = material.recipe.rules(folder.spec).renamed
    return sum(renamed.get(tag) == [] for tag in clothes) * 2 > len(clothes)


def is_mannequin(folder: Folder) -> bool:
    """Whether most captions of a source tell of an outfit without its wearer."""
    told = sum(bool(words.MANNEQUIN & set(map(str.casefold, tags_of(captioned)))) for captioned in folder.pictures)
    return told * 2 > len(folder.pictures)


def outfits(folders: Sequence[Folder]) -> Iterator[Outfit]:
    """The clothes of each picture whose caption names some."""
    for folder in folders:
        for captioned in folder.pictures:
            if worn := words.clothes(tags_of(captioned)):
                yield worn


def _overlap(one: Outfit, other: Outfit) -> float:
    """Shared tags by the tags of the one with fewer: an upper body shows less of an outfit than a full one."""
    return len(one & other) / min(len(one), len(other))
