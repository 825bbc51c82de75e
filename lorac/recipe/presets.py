"""The presets: two tables of defaults that lie below everything that a recipe gives.

kohya-2023 is what the article's LoRAs were made with: what the popup of January 2023 (LoRA_Easy_Training_Scripts)
always set, the defaults of its questions, and the article's own answers. modern is where somebody who trains SD 1.x
characters today starts. A preset never makes a recipe wrong: a setting that would not go with what the recipe says
gives way, and messages name the recipe's lines only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from lorac.recipe.places import Tree
from lorac.recipe.schema import EXCLUSIVE, SECTIONS

Key = tuple[str, str]


@dataclass(frozen=True)
class Setting:
    """`value` for the key, and why.

    `unless` are keys, with a value or ... for any, that make the setting give way: beside them it would be wrong.
    `follows` names a key in whose proportion the value is taken.
    """

    at: Key
    value: Any
    why: str
    unless: tuple[tuple[Key, Any], ...] = ()
    follows: Key | None = None


POPUP, QUESTION, ARTICLE = "popup, never asked", "popup's answer to Cancel", "the article's answer"
DIM = ("network", "dim")
RATE_GIVEN = ((("train", "learning_rate"), ...),)
NO_SCHEDULER = ((("train", "optimizer"), "adamw_schedule_free"),)
NO_WARMUP = (*NO_SCHEDULER, (("train", "lr_scheduler"), "constant"))

KOHYA_2023 = (
    Setting(("network", "dim"), 128, f"{QUESTION}; 151 MB"),
    Setting(("network", "alpha"), 128.0, f"{QUESTION}: that of dim, so that the LoRA works at 1", follows=DIM),
    Setting(("train", "learning_rate"), 1e-4, QUESTION),
    Setting(("train", "lr_scheduler"), "cosine_with_restarts", f"{QUESTION}; one cycle, so plain cosine", NO_SCHEDULER),
    Setting(("train", "lr_warmup_steps"), 0.01, f"{ARTICLE}; Cancel gives 0.05", NO_WARMUP),
    Setting(("train", "optimizer"), "adamw", "popup: AdamW8bit, which needs CUDA and bitsandbytes; the same steps"),
    Setting(("train", "latents"), "sample", "sd-scripts froze one random sample of each latent"),
    Setting(("train", "bucket_list"), "2023", "sd-scripts v0.4.0 also had very flat buckets; sides 320 to 960 follow"),
    Setting(("train", "clip_skip"), 2, f"{POPUP}; NAI and its kin are made for it"),
    Setting(("train", "max_token_length"), 150, POPUP),
    Setting(("train", "save_every_n_epochs"), 1, QUESTION),
    Setting(("train", "seed"), 23, POPUP),
    Setting(("caption", "shuffle_caption"), True, ARTICLE),
    Setting(("caption", "keep_tokens"), 1, f"{ARTICLE}: the trigger"),
    Setting(("loss", "prior_loss_weight"), 1.0, POPUP),
)

MODERN = (
    Setting(("network", "dim"), 16, "holds a character; 19 MB"),
    Setting(("network", "alpha"), 8.0, "half of dim: calmer, fewer over-fitted backgrounds", follows=DIM),
    Setting(("train", "unet_lr"), 1e-4, "the usual rate at alpha = dim / 2", unless=RATE_GIVEN),
    Setting(("train", "text_encoder_lr"), 5e-5, "half: the text encoder over-fits first", unless=RATE_GIVEN),
    Setting(("train", "lr_scheduler"), "cosine", "ends quietly: the last epoch is often good", NO_SCHEDULER),
    Setting(("train", "lr_warmup_steps"), 0.05, "the first steps on fresh moments are the wildest", NO_WARMUP),
    Setting(("train", "latents"), "mean", "no frozen noise of the VAE in the pictures"),
    Setting(("train", "bucket_list"), "today", "no buckets flatter than min_bucket_reso"),
    Setting(("train", "max_token_length"), 225, "taggers write long captions; nothing is cut off"),
    Setting(("train", "save_every_n_epochs"), 1, "an earlier epoch is often the better one"),
    Setting(("train", "seed"), 23, "any number; the same one gives the same LoRA"),
    Setting(("caption", "shuffle_caption"), True, "so that the order of tags means nothing"),
    Setting(("caption", "keep_tokens"), 1, "the trigger stays in front"),
    Setting(
        ("loss", "min_snr_gamma"),
        5.0,
        "evens out the timesteps (min-SNR); converges faster",
        unless=((("loss", "debiased_estimation_loss"), True),),
    ),
)

PRESETS = {"kohya-2023": KOHYA_2023, "modern": MODERN}


def underlay(tree: Tree) -> None:
    """Put the values of the preset that `tree` names where it gives none. An unknown name is left to validation."""
    name = tree.data.get("preset")
    settings = PRESETS.get(name, ()) if isinstance(name, str) else ()
    values = {setting.at: _value(tree.data, setting, settings) for setting in settings if _wanted(tree.data, setting)}
    for (section, key), value in values.items():
        table = tree.data.setdefault(section, {})
        if isinstance(table, dict):  # anything else is reported by validation
            table[key] = value


def _wanted(data: dict[str, Any], setting: Setting) -> bool:
    taken = [setting.at, *([EXCLUSIVE[setting.at]] if setting.at in EXCLUSIVE else [])]
    conditions = [*((key, ...) for key in taken), *setting.unless]
    given = [(_given(data, key), value) for key, value in conditions]
    return not any(found is not None and value in (found, ...) for found, value in given)


def _value(data: dict[str, Any], setting: Setting, settings: tuple[Setting, ...]) -> Any:
    """The setting's value, in proportion to the recipe's where it follows another key."""
    given = _given(data, setting.follows) if setting.follows else None
    if not isinstance(given, int | float) or given <= 0:
        return setting.value
    return setting.value * given / next(other.value for other in settings if other.at == setting.follows)


def _given(data: dict[str, Any], key: Key) -> Any:
    table = data.get(key[0])
    return table.get(key[1]) if isinstance(table, dict) else None


class Row(NamedTuple):
    """A key's value without a preset and with each, as recipes write it; empty where a preset leaves it alone."""

    key: str
    default: str
    kohya_2023: str
    modern: str
    why: str


def table() -> list[Row]:
    """Every key that a preset sets, in the schema's order."""
    rows = []
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            found = {name: s for name, preset in PRESETS.items() for s in preset if s.at == (section, field.name)}
            if found:
                words = [_shown(found[name].value) if name in found else "" for name in PRESETS]
                why = "; ".join(f"{name}: {setting.why}" for name, setting in found.items())
                rows.append(Row(f"{section}.{field.name}", _shown(field.default), words[0], words[1], why))
    return rows


def _shown(value: object) -> str:
    match value:
        case None:
            return "absent"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case float():
            return f"{value:g}"
    return str(value)


def markdown() -> str:
    """The differences of the presets as a table for the documentation."""
    rows = [("key", "default", *PRESETS, "why"), ("---",) * 5, *table()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
