"""Rules about the words that call what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import permutations, product
from pathlib import Path

from lorac.captions import normal, split_tags
from lorac.check.material import Material, counted
from lorac.check.rule import Found
from lorac.dataset import Folder
from lorac.errors import InputError
from lorac.recipe.fields import BUILTIN_TAGGER
from lorac.recipe.recipe import Recipe
from lorac.recipe.tagger import TAGS, tagger_folder
from lorac.tagger.vocabulary import CHARACTER, RATING, read_tags
from lorac.words import BINDING

ALMOST = 0.8
"""Likeness (Ratcliff and Obershelp's, 0 to 1) from which a word is taken for a misspelt one."""


def no_trigger(material: Material) -> Found:
    """L004 no-trigger: a source has no trigger words

    Why: What is learnt hangs on words. Without a trigger it spreads over all tags of the captions, and no word in a
    prompt calls the character.

    Before:
        [[source]]
        path = "images/riho"

    After:
        [[source]]
        path = "images/riho"
        trigger = ["izumi riho"]

    Remedy: Give each source at least one trigger word that the base does not know.
    """
    for folder in material.sources:
        if not folder.spec.trigger:
            yield folder.spec.where, 'the source has no trigger words; give it some, as trigger = ["name"]'


def shuffled_trigger(material: Material) -> Found:
    """L005 shuffled-trigger: shuffling moves the trigger away from the front

    Why: The text encoder reads the front of a caption most, and what stands behind the token limit is cut off. A
    trigger that keep_tokens does not hold lands anywhere. keep_tokens counts tags between commas, not words.

    Before:
        [caption]
        shuffle_caption = true

    After:
        [caption]
        shuffle_caption = true
        keep_tokens = 1

    Remedy: Set caption.keep_tokens to the number of trigger tags, or put a keep_tokens_separator into all captions.
    """
    recipe = material.recipe
    if not recipe.caption.shuffle_caption:
        return
    mark = recipe.caption.keep_tokens_separator
    for folder in material.sources:
        tags = sum(len(split_tags(word)) for word in folder.spec.trigger)
        marked = bool(mark) and all(mark in line for c in folder.pictures for line in c.text.split("\n"))
        if recipe.caption.keep_tokens < tags and not marked:
            text = f"shuffling moves the {tags} trigger tags of {folder.label}; set keep_tokens = {tags}"
            yield recipe.where("caption.keep_tokens"), text


def nested_trigger(material: Material) -> Found:
    """L021 nested-trigger: a trigger is part of another source's

    Why: A prompt with the longer trigger also says the shorter one, so both are called at once, and neither can be
    had alone. The article's triggers share no word: izumi riho, kkdancer, rihocloth. Triggers of one source are called
    together anyway, and may contain each other.

    Before:
        trigger = ["riho"]
        trigger = ["riho dancer"]

    After:
        trigger = ["riho"]
        trigger = ["kkdancer"]

    Remedy: Take words for triggers that do not contain each other.
    """
    triggers = [(folder.spec.where, sorted(triggers_of([folder]))) for folder in material.sources]
    for (_, inners), (where, outers) in permutations(triggers, 2):
        for inner, outer in product(inners, outers):
            if inner not in outers and f" {inner} " in f" {outer} ":
                text = f'the trigger "{outer}" contains the trigger "{inner}" and calls both; take another word'
                yield where, text


def common_trigger(material: Material) -> Found:
    """L022 common-trigger: a trigger is an ordinary tag

    Why: The base knows the word already and draws what it means in general; the LoRA has to work against that, and
    then changes the word's meaning wherever it is used.

    Before:
        trigger = ["maid"]

    After:
        trigger = ["rihomaid"]

    Remedy: Invent a word, and look it up in the tagger's selected_tags.csv.
    """
    known = ordinary_tags(material.recipe)
    for folder in material.sources:
        for tag in sorted(triggers_of([folder]) & known):
            text = f'the trigger "{tag}" is an ordinary tag, which the base knows already; invent a word'
            yield folder.spec.where, text


def ordinary_tags(recipe: Recipe) -> set[str]:
    """General tags of the embedded tagger and of the recipe's; names of characters are what a trigger may be."""
    known = set(BINDING)
    for model in {BUILTIN_TAGGER, recipe.tagger.model or BUILTIN_TAGGER}:
        path = tagger_folder(model) / TAGS
        try:
            rows = read_tags(Path(path).read_bytes(), str(path))
        except (OSError, InputError):
            continue  # a build says what is wrong with the tagger
        known |= {normal(row.name).casefold() for row in rows if row.category not in (RATING, CHARACTER)}
    return known


def triggers_of(sources: Sequence[Folder]) -> frozenset[str]:
    """Their trigger tags in small letters."""
    words = (tag for folder in sources for word in folder.spec.trigger for tag in split_tags(word))
    return frozenset(map(str.casefold, words))


def regularised_trigger(material: Material) -> Found:
    """L023 trigger-in-regularisation: a regularisation caption has a trigger word

    Why: Regularisation pictures show what the class looks like without the LoRA. With the trigger in their captions
    they teach that the trigger means just anyone, in half of all steps.

    Before:
        [[regularisation]]
        path = "images/1girl"
        caption = "izumi riho"

    After:
        [[regularisation]]
        path = "images/1girl"
        caption = "1girl"

    Remedy: Caption regularisation pictures with what they show, and never with a trigger.
    """
    triggers = triggers_of(material.sources)
    for folder in material.regularisation:
        own = [frozenset(tag.casefold() for tags in c.readings for tag in tags) for c in folder.pictures]
        if folder.spec.generate and not (folder.spec.asks_tagger and material.recipe.tagger.model):
            own = [frozenset(map(str.casefold, split_tags(folder.spec.fallback)))]
        found = [tags & triggers for tags in own if tags & triggers]
        if found:
            many = counted(len(found), "caption")
            text = f'the trigger "{min(found[0])}" is in {many} of {folder.label}; take it out'
            yield folder.spec.where, text


def unsampled_trigger(material: Material) -> Found:
    """L033 unsampled-trigger: sample prompts lack the trigger, or misspell it

    Why: Pictures drawn without the trigger do not show what was learnt, and every figure measured on them says
    nothing.

    Before:
        [sample]
        prompts = ["1girl, izumi rhio, smile"]

    After:
        [sample]
        prompts = ["1girl, izumi riho, smile"]

    Remedy: Put a trigger word into at least one prompt, as the source spells it.
    """
    recipe = material.recipe
    triggers = sorted(triggers_of(material.sources))
    prompts = [[tag.casefold() for tag in split_tags(entry.prompt)] for entry in material.recipe.prompts]
    named = [any(f" {word} " in f" {tag} " for tag in tags for word in triggers) for tags in prompts]
    for number, tags in enumerate(prompts):
        for tag in () if named[number] else tags:
            for meant in get_close_matches(tag, triggers, n=1, cutoff=ALMOST):
                text = f'the prompt says "{tag}"; did you mean the trigger "{meant}"?'
                yield recipe.where(f"sample.prompts[{number}]"), text
                named[number] = True
    if prompts and triggers and not any(named):
        text = f'no sample prompt has a trigger word; add "{triggers[0]}" to one'
        yield recipe.where("sample.prompts"), text
