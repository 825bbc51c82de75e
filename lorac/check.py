"""`lorac check`: likely mistakes that are no errors. One rule, one function, one code.

Rules come from the article's findings and from what users of other trainers report again and again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import sqrt
from pathlib import Path

from lorac.captions import split_tags, unmatched
from lorac.dataset import Folder, fitting, folders
from lorac.kinds.image import HIDDEN, Refused, header, layers
from lorac.listing import shown_path
from lorac.recipe import arithmetic
from lorac.recipe.optimisers import has_relative_step
from lorac.recipe.recipe import Recipe

BINDING = ("1girl", "1boy", "solo")
"""Tags of every picture of a character; left in, they come to mean her outfit (the article's finding 11)."""
STRONG = 5e-4
"""Learning rate x alpha / dim (√dim of rsLoRA) above which the article's runs diverged or got unstable (finding 7)."""
ALMOST = 0.8
"""Likeness (Ratcliff and Obershelp's, 0 to 1) from which a rule is taken for a misspelt tag."""
_CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}")
_MARK = re.compile(r"\|\|\|")
FEW = 8
"""More repetitions than this in an epoch make a regularisation picture a training picture."""


@dataclass(frozen=True)
class Finding:
    """`where` is a line of the recipe or a file."""

    code: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.code} {self.text}"


Rule = Callable[[Recipe, Sequence[Folder]], Iterator[Finding]]


def findings(recipe: Recipe) -> list[Finding]:
    """Everything the rules find in one recipe. Raises InputError for captions that cannot be read."""
    sets = folders(recipe)
    return [finding for rule in RULES for finding in rule(recipe, sets)]


def misspelt_rule(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L001: an exclude or replace rule that meets no tag, but almost one, is a typing error.

    One that is like no tag is left alone: lists of tags to exclude are shared between recipes. What a tagger will see
    is not known here; `lorac tag` says which rules met nothing of it.
    """
    if any(captioned.tagged for folder in sets for captioned in folder.pictures if not folder.regularisation):
        return
    raws = [c.raw for folder in sets if not folder.regularisation for c in folder.pictures if c.raw is not None]
    named = (*recipe.caption.exclude, *recipe.caption.replace)
    tags = {tag for raw in raws for tag in split_tags(raw)} - set(split_tags(",".join(named)))
    for rule in unmatched(recipe.rules(recipe.sources[0]), raws):
        for meant in get_close_matches(rule, tags, n=1, cutoff=ALMOST):
            where = recipe.where("caption.exclude" if rule in recipe.caption.exclude else "caption.replace")
            yield Finding("L001", where, f'the rule for "{rule}" meets no tag; did you mean "{meant}"?')


def truncated(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L002: tags behind the token limit are never learnt."""
    limit = recipe.train.max_token_length
    for folder in sets:
        for captioned in folder.pictures:
            count, tags = captioned.longest()
            if count > limit:
                lost = len(tags) - fitting(tags, limit)
                remedy = "raise train.max_token_length" if limit < 225 else "shorten it"
                text = f"the caption has {count} tokens, {lost} of its tags are behind the limit of {limit}; {remedy}"
                yield Finding("L002", shown_path(captioned.picture.caption_path or captioned.picture.path), text)


def binding_tags(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L003: `1girl` and `solo`, left in, bind the outfit to those words."""
    for tag in BINDING:
        own = [captioned for folder in sets if not folder.regularisation for captioned in folder.pictures]
        kept = sum(any(tag == other.casefold() for tags in c.readings for other in tags) for c in own)
        if kept:
            text = f'"{tag}" stays in {kept} captions and binds the character to it; add it to caption.exclude'
            yield Finding("L003", recipe.where("caption.exclude"), text)


def no_trigger(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L004: without a trigger word nothing calls the character."""
    for folder in sets:
        if not folder.regularisation and not folder.spec.trigger:
            yield Finding(
                "L004", folder.spec.where, 'the source has no trigger words; give it some, as trigger = ["name"]'
            )


def shuffled_trigger(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L005: shuffling moves triggers that neither keep_tokens nor a mark holds."""
    if not recipe.caption.shuffle_caption:
        return
    mark = recipe.caption.keep_tokens_separator
    for folder in sets:
        tags = sum(len(split_tags(word)) for word in folder.spec.trigger)
        marked = bool(mark) and all(mark in line for c in folder.pictures for line in c.text.split("\n"))
        if recipe.caption.keep_tokens < tags and not marked:
            text = f"shuffling moves the {tags} trigger tags of {folder.label}; set keep_tokens = {tags}"
            yield Finding("L005", recipe.where("caption.keep_tokens"), text)


def few_regularisation(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L006: a handful of regularisation pictures, repeated, is learnt instead of the class."""
    train = sum(len(f.pictures) * f.spec.repeats for f in sets if not f.regularisation)
    repeats = [f.spec.repeats for f in sets if f.regularisation for _ in f.pictures]
    order = arithmetic.regularisation_order(repeats, train)
    if repeats and len(order) > FEW * len(repeats):
        text = f"{len(repeats)} regularisation pictures fill {len(order)} samples an epoch; add pictures"
        yield Finding("L006", recipe.where("regularisation"), text)


def too_strong(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L007: when the learning rate goes up, alpha must go down. Some optimisers make the rate themselves."""
    train, network = recipe.train, recipe.network
    if train.optimizer == "prodigy" or has_relative_step(train.optimizer, train.optimizer_args):
        return
    divisor, shown = (sqrt(network.dim), "√dim") if network.rslora else (network.dim, "dim")
    rate = (train.unet_lr or 0.0) * network.alpha / divisor
    if rate > STRONG:
        text = f"learning rate x alpha / {shown} is {rate:g}, above {STRONG:g}: such runs diverge; lower alpha"
        yield Finding("L007", recipe.where("network.alpha"), text)


def no_background(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L008: a build refuses transparent parts until the recipe says what is behind them."""
    for folder in sets:
        if folder.spec.alpha is None:
            paths = [captioned.picture.path for captioned in folder.files]
            found = [path for path in paths if _has_holes(path)]
            if found:
                text = f"{len(found)} of {len(paths)} pictures have transparent parts, first {shown_path(found[0])}"
                yield Finding("L008", folder.spec.where, f'{text}; say what is behind them, as alpha = "white"')


def _has_holes(path: str) -> bool:
    """Whether a picture is transparent somewhere; what cannot be read is the build's to report."""
    try:
        return header(path)[1] and layers(Path(path).read_bytes(), HIDDEN)[1] is not None
    except (Refused, OSError):
        return False


def unusable(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L013: a build refuses pictures that cannot be opened; their headers alone are looked at."""
    for folder in sets:
        for captioned in folder.files:
            try:
                header(captioned.picture.path)
            except Refused as refusal:
                yield Finding("L013", shown_path(captioned.picture.path), f"the picture {refusal}")


def no_caption(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L009: a build refuses pictures without a text file, a trigger or a tagger."""
    if recipe.tagger.model is not None:
        return
    for folder in sets:
        found = [c.picture.path for c in folder.pictures if c.raw is None and not c.text]
        if found:
            text = f"{len(found)} of {len(folder.pictures)} pictures have no caption, first {shown_path(found[0])}"
            remedy = f"write {recipe.caption.extension} files beside them, or give them " + (
                "caption = …" if folder.regularisation else "trigger words"
            )
            yield Finding("L009", folder.spec.where, f"{text}; {remedy}")


def no_mark(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L010: a keep_tokens_separator that is in no caption."""
    mark = recipe.caption.keep_tokens_separator
    if mark and not any(mark in captioned.text for folder in sets for captioned in folder.pictures):
        text = f'the mark "{mark}" is in no caption; write it behind the tags that stay in front'
        yield Finding("L010", recipe.where("caption.keep_tokens_separator"), text)


def unread_signs(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L011: choices and marks that the recipe does not read are trained as they are written."""
    caption = recipe.caption
    for sign, what, key, off in (
        (_CHOICE, "a choice such as {a|b}", "enable_wildcard = true", not caption.enable_wildcard),
        (_MARK, "the mark |||", 'keep_tokens_separator = "|||"', not caption.keep_tokens_separator),
    ):
        found = [c.picture for folder in sets for c in folder.pictures if off and sign.search(c.text)]
        if found:
            where = shown_path(found[0].caption_path or found[0].path)
            text = f"the caption has {what}, which is trained as written"
            others = f", as in {len(found) - 1} more" if len(found) > 1 else ""
            yield Finding("L011", where, f"{text}{others}; set caption.{key}")


def nothing_held_out(recipe: Recipe, sets: Sequence[Folder]) -> Iterator[Finding]:
    """L012: a split so small that no folder gives a picture."""
    split, counts = recipe.validation.split, [len(folder.pictures) for folder in sets if not folder.regularisation]
    if split and not any(arithmetic.held_out(count, split, 0, 0) for count in counts):
        text = arithmetic.nothing_held_out(split, max(counts))
        yield Finding("L012", recipe.where("validation.split"), text)


RULES: tuple[Rule, ...] = (
    misspelt_rule,
    truncated,
    binding_tags,
    no_trigger,
    shuffled_trigger,
    few_regularisation,
    too_strong,
    no_background,
    no_caption,
    no_mark,
    unread_signs,
    nothing_held_out,
    unusable,
)
