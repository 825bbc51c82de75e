"""All rules, in the order of their codes. A code is never used again for something else."""

from __future__ import annotations

from lorac.check import article, captions, numbers, pictures, settings, tags, triggers
from lorac.check.rule import Finder, rule

_FINDERS: tuple[Finder, ...] = (
    captions.misspelt_rule,
    captions.truncated,
    tags.binding_tags,
    triggers.no_trigger,
    triggers.shuffled_trigger,
    numbers.few_regularisation,
    settings.too_strong,
    pictures.no_background,
    captions.no_caption,
    captions.no_mark,
    captions.unread_signs,
    numbers.nothing_held_out,
    pictures.unusable,
    article.heads_without_regularisation,
    article.heads_at_full_alpha,
    settings.rank_one,
    article.spread,
    tags.closed_eyes,
    article.one_mannequin_outfit,
    article.one_outfit,
    triggers.nested_trigger,
    triggers.common_trigger,
    triggers.regularised_trigger,
    pictures.duplicates,
    pictures.enlarged,
    pictures.cropped,
    numbers.lonely_bucket,
    numbers.halved_epochs,
    numbers.unseen_regularisation,
    captions.mixed_captions,
    captions.prompt_syntax,
    captions.same_captions,
    triggers.unsampled_trigger,
    tags.mirrored_sides,
    settings.too_weak,
    tags.excluded_scene,
    pictures.mixed_roles,
    settings.nobody_looks,
    captions.no_text,
)

RULES = {made.code: made for made in map(rule, _FINDERS)}
