"""Rules about the texts beside the pictures."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher, get_close_matches

from lorac import words
from lorac.captions import normal, split_tags, unmatched
from lorac.check.material import Material, counted, place_of
from lorac.check.rule import Found
from lorac.check.triggers import ALMOST, ordinary_tags
from lorac.dataset import fitting
from lorac.listing import shown_path
from lorac.plan import no_captions

_CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}")
_MARK = re.compile(r"\|\|\|")
_SYNTAX = (
    (re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE), "loads no LoRA here"),
    (re.compile(r"\([^()]+:\d+(?:\.\d+)?\)"), "is no weight here"),
    (re.compile(r"\\[()]"), "is no escaped bracket here"),
)
_JOINING = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "with",
        "of",
        "in",
        "on",
        "at",
        "and",
        "her",
        "his",
        "its",
        "she",
        "he",
        "wearing",
    ]
)
ALMOST_A_WORD = 0.7
"""Likeness of words at the same place of two tags: a pair of letters swapped in "hair" leaves 0.75."""
SHORT = 5
"""Letters up to which a word with another letter in it is another word: blush and brush, hat and cat."""
SENTENCE = 6
"""Words between two commas from which a text may be a sentence; tags have at most four."""
FEW_TO_COMPARE = 4


def misspelt_rule(material: Material) -> Found:
    """L001 misspelt-rule: an exclude or replace rule meets no tag, but almost one

    Why: A rule with a typing error does nothing, in silence. One that is like no tag at all is left alone, and one
    that is an ordinary tag itself, because recipes share lists of tags to exclude; so are all rules where a tagger
    writes captions: `lorac tag` tells.

    Before:
        [caption]
        exclude = ["orange hiar"]

    After:
        [caption]
        exclude = ["orange hair"]

    Remedy: Spell the tag as the captions do; case and `_` for a space do not matter.
    """
    recipe = material.recipe
    if any(captioned.tagged for captioned in material.pictures):
        return
    raws = [captioned.raw for captioned in material.pictures if captioned.raw is not None]
    named = (*recipe.caption.exclude, *recipe.caption.replace)
    known = words.of_tags(ordinary_tags(recipe))
    tags = {tag.casefold() for raw in raws for tag in split_tags(raw)} - {normal(rule).casefold() for rule in named}
    for rule in unmatched(recipe.rules(recipe.sources[0]), raws):
        written = normal(rule).casefold()
        near = [tag for tag in sorted(tags) if _may_be(written, tag)]
        for meant in get_close_matches(written, near, n=1, cutoff=ALMOST):
            if not known.issuperset(written.split()):
                where = recipe.where("caption.exclude" if rule in recipe.caption.exclude else "caption.replace")
                yield where, f'the rule for "{rule}" meets no tag; did you mean "{meant}"?'


def _may_be(written: str, tag: str) -> bool:
    """Whether a tag may be meant: one wrong letter in a short word, or one word in place of another, is another tag."""
    pairs = list(zip(written.split(), tag.split(), strict=False))
    if len(pairs) == 1 and len(written) == len(tag) <= SHORT:
        return sorted(written) == sorted(tag)
    if len(written.split()) != len(tag.split()):
        return True
    return all(SequenceMatcher(None, other, own).ratio() >= ALMOST_A_WORD for own, other in pairs)


def truncated(material: Material) -> Found:
    """L002 cut-off-caption: tags lie behind the token limit

    Why: CLIP reads windows of 75 tokens. What is behind train.max_token_length is cut off and never learnt; with
    shuffle_caption, other tags each time.

    Before:
        [train]
        max_token_length = 75

    After:
        [train]
        max_token_length = 150

    Remedy: Raise train.max_token_length to 150 or 225, or shorten the caption.
    """
    limit = material.recipe.train.max_token_length
    for folder in material.sets:
        for captioned in folder.pictures:
            count, tags = captioned.longest()
            if count > limit:
                lost = len(tags) - fitting(tags, limit)
                remedy = "raise train.max_token_length" if limit < 225 else "shorten it"
                text = f"the caption has {count} tokens, {lost} of its tags are behind the limit of {limit}; {remedy}"
                yield place_of(captioned), text


def no_caption(material: Material) -> Found:
    """L009 no-caption: pictures have no text file, no trigger and no tagger

    Why: A build refuses them, because an empty caption teaches every prompt to look like the picture.

    Before:
        [[source]]
        path = "images/riho"

    After:
        [tagger]
        model = "builtin:mini"

    Remedy: Write NAME.txt beside NAME.png, give trigger words, or let a tagger write the captions.
    """
    recipe = material.recipe
    if recipe.tagger.model is not None:
        return
    for folder in material.sets:
        found = [c.picture.path for c in folder.pictures if c.raw is None and not c.text]
        if found:
            cause, remedy = no_captions(recipe, folder.spec, found, len(folder.pictures))
            yield folder.spec.where, f"{cause}; {remedy}"


def no_text(material: Material) -> Found:
    """L039 missing-caption: some pictures of a source have a text file, others have none

    Why: A picture without a text file is trained with the trigger words alone, as by kohya with its class tokens. All
    that is in it then comes with the trigger: pose, clothes, background. Where no picture of a source has a file, that
    is taken for meant, unless there are many (L032); so it is where a tagger writes captions.

    Before:
        riho_01.png, riho_01.txt, riho_02.png

    After:
        riho_01.png, riho_01.txt, riho_02.png, riho_02.txt

    Remedy: Write NAME.txt beside NAME.png, or let a tagger write the captions.
    """
    extension = material.recipe.caption.extension
    for folder in material.sources:
        found = [c.picture.path for c in folder.pictures if c.raw is None and c.text and not c.tagged]
        if 0 < len(found) < len(folder.pictures):
            text = f"{len(found)} of {len(folder.pictures)} pictures have no {extension} file"
            text += f", first {shown_path(found[0])}, and are trained with the trigger words alone"
            yield folder.spec.where, f"{text}; write the files, or set tagger.model"


def no_mark(material: Material) -> Found:
    """L010 missing-mark: the keep_tokens_separator is in no caption

    Why: Without the mark nothing is kept in front, and shuffling moves every tag but the first keep_tokens.

    Before:
        keep_tokens_separator = "|||"
        riho_01.txt: izumi riho, smile, outdoors

    After:
        keep_tokens_separator = "|||"
        riho_01.txt: izumi riho ||| smile, outdoors

    Remedy: Write the mark behind the tags that stay in front, or use keep_tokens.
    """
    mark = material.recipe.caption.keep_tokens_separator
    if mark and not any(mark in captioned.text for folder in material.sets for captioned in folder.pictures):
        text = f'the mark "{mark}" is in no caption; write it behind the tags that stay in front'
        yield material.recipe.where("caption.keep_tokens_separator"), text


def unread_signs(material: Material) -> Found:
    """L011 unread-sign: a caption has choices or marks that the recipe does not read

    Why: Captions written for kohya's wildcards are trained word for word, brackets and all, where the recipe does not
    say that they have a meaning.

    Before:
        riho_01.txt: izumi riho, {red|blue} hat

    After:
        [caption]
        enable_wildcard = true

    Remedy: Set caption.enable_wildcard or caption.keep_tokens_separator, or write plain tags.
    """
    caption = material.recipe.caption
    for sign, what, key, off in (
        (_CHOICE, "a choice such as {a|b}", "enable_wildcard = true", not caption.enable_wildcard),
        (_MARK, "the mark |||", 'keep_tokens_separator = "|||"', not caption.keep_tokens_separator),
    ):
        found = [c for folder in material.sets for c in folder.pictures if off and sign.search(c.text)]
        if found:
            text = f"the caption has {what}, which is trained as written"
            others = f", as in {len(found) - 1} more" if len(found) > 1 else ""
            yield place_of(found[0]), f"{text}{others}; set caption.{key}"


def mixed_captions(material: Material) -> Found:
    """L030 mixed-captions: some captions are sentences, others are lists of tags

    Why: Two languages for the same things halve what each of them learns. Shuffling, keep_tokens and exclude work on
    what stands between commas, and tear sentences apart.

    Before:
        riho_01.txt: a girl with orange hair is standing in front of a school
        riho_02.txt: orange hair, standing, school

    After:
        riho_01.txt: orange hair, standing, school
        riho_02.txt: orange hair, standing, school

    Remedy: Write all captions in the style that the base was trained on: tags for anime models.
    """
    told = [captioned for captioned in material.pictures if captioned.raw is not None]
    sentences = [captioned for captioned in told if _is_sentence(captioned.raw or "")]
    lists = [captioned for captioned in told if _is_list(captioned.raw or "")]
    if sentences and lists:
        few, what = min((sentences, "sentences"), (lists, "lists of tags"), key=lambda pair: len(pair[0]))
        other = "lists of tags" if few is sentences else "sentences"
        text = f"{len(few)} of {len(told)} captions are {what}, this one first, and others are {other}; take one style"
        yield place_of(few[0]), text


def _is_sentence(raw: str) -> bool:
    parts = [part.casefold().strip(" .\n").split() for part in raw.split(",")]
    return any(len(part) >= SENTENCE and _JOINING.intersection(part) for part in parts)


def _is_list(raw: str) -> bool:
    tags = split_tags(raw)
    return len(tags) >= 3 and all(len(tag.split()) < SENTENCE for tag in tags)


def prompt_syntax(material: Material) -> Found:
    """L031 prompt-syntax: a web UI's prompt syntax in a caption or a sample prompt

    Why: `<lora:…>`, `(tag:1.2)` and `\\(` are read by web UIs before the text encoder sees them. lorac has no such
    step: a caption teaches the signs as words, and a sample prompt draws them. Taggers that escape brackets leave
    `\\(` behind.

    Before:
        riho_01.txt: izumi riho, (smile:1.2), bow \\(ribbon\\)

    After:
        riho_01.txt: izumi riho, smile, bow (ribbon)

    Remedy: Write plain tags; for the LoRA's weight in samples use sample.strengths.
    """
    recipe = material.recipe
    texts = [(place_of(c), "the caption", c.raw or "") for folder in material.sets for c in folder.pictures]
    for number, entry in enumerate(recipe.prompts):
        place = recipe.where(f"sample.prompts[{number}]")
        texts += [(place, "the prompt", entry.prompt), (place, "the negative prompt", entry.negative or "")]
    for where, what, text in texts:
        for sign, meaning in _SYNTAX:
            if match := sign.search(text):
                yield where, f'{what} has "{match[0]}", which {meaning}; write plain tags'


def same_captions(material: Material) -> Found:
    """L032 same-captions: all captions of a source are the same

    Why: What no tag tells apart is learnt as one thing. Pose, clothes, expression and background then come with the
    trigger, and prompts cannot change them.

    Before:
        riho_01.txt: izumi riho
        riho_02.txt: izumi riho

    After:
        riho_01.txt: izumi riho, smile, standing, school
        riho_02.txt: izumi riho, open mouth, sitting, beach

    Remedy: Tag what differs from picture to picture, by hand or with a [tagger].
    """
    for folder in material.sources:
        texts = Counter(c.text for c in folder.pictures if not c.tagged)
        if len(texts) == 1 and texts.total() == len(folder.pictures) >= FEW_TO_COMPARE and "" not in texts:
            shown = next(iter(texts))
            text = f'all {counted(len(folder.pictures), "caption")} of {folder.label} are "{shown[:60]}"'
            yield folder.spec.where, f"{text}; tag what differs, or set tagger.model"
