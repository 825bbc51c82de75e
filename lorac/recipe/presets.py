"""The presets: two tables of defaults that lie below everything that a recipe gives.

kohya-2023 is what the article's LoRAs were made with: what the popup of January 2023 (LoRA_Easy_Training_Scripts)
always set, the defaults of its questions, and the article's own answers. Not how sd-scripts of that time enlarged:
with cv2's INTER_AREA, which lorac, like today's, does with Lanczos. modern is where somebody who trains SD 1.x
characters today starts. A preset never makes a recipe wrong: a setting that would not go with what the recipe says
gives way, and messages name the recipe's lines only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from lorac.recipe.optimisers import has_relative_step
from lorac.recipe.places import Tree
from lorac.recipe.schema import EXCLUSIVE, SECTIONS

Key = tuple[str, str]


@dataclass(frozen=True)
class Setting:
    """`value` for the key, and why.

    `unless` tells of a recipe's values whether the setting gives way to them: beside them it would be wrong.
    `follows` names a key in whose proportion the value is taken.
    """

    at: Key
    value: Any
    why: str
    unless: Callable[[dict[str, Any]], bool] = lambda data: False
    follows: Key | None = None


POPUP, QUESTION, ARTICLE = "popup, never asked", "popup's answer to Cancel", "the article's answer"
DIM = ("network", "dim")
LONGEST = 0.05
"""The longest warm-up of a preset, as a share of the run."""


def _given(data: dict[str, Any], key: Key) -> Any:
    table = data.get(key[0])
    return table.get(key[1]) if isinstance(table, dict) else None


def _makes_rates(data: dict[str, Any]) -> bool:
    """Whether the optimiser makes its own learning rates: an adafactor that is not told otherwise."""
    arguments = _given(data, ("train", "optimizer_args"))
    optimizer = str(_given(data, ("train", "optimizer")))
    return has_relative_step(optimizer, arguments if isinstance(arguments, dict) else {})


def _rates(data: dict[str, Any]) -> bool:
    """The recipe has one rate for all, or an optimiser that takes no two."""
    given = _given(data, ("train", "learning_rate")) is not None
    return given or _given(data, ("train", "optimizer")) == "prodigy" or _makes_rates(data)


def _no_scheduler(data: dict[str, Any]) -> bool:
    return _given(data, ("train", "optimizer")) == "adamw_schedule_free" or _makes_rates(data)


def _no_warmup(data: dict[str, Any]) -> bool:
    """The scheduler has no warm-up, or its decay leaves no steps for one."""
    scheduler = _given(data, ("train", "lr_scheduler"))
    decay, steps = (_given(data, ("train", key)) for key in ("lr_decay_steps", "steps"))
    if isinstance(decay, int) and isinstance(steps, int) and steps > 0:
        decay = decay / steps
    crowded = scheduler == "warmup_stable_decay" and isinstance(decay, float) and decay > 1 - LONGEST
    return crowded or scheduler in ("constant", "piecewise_constant") or _no_scheduler(data)


def _debiased(data: dict[str, Any]) -> bool:
    return _given(data, ("loss", "debiased_estimation_loss")) is True


KOHYA_2023 = (
    Setting(("network", "dim"), 128, f"{QUESTION}; 151 MB"),
    Setting(("network", "alpha"), 128.0, f"{QUESTION}: that of dim, so that the LoRA works at 1", follows=DIM),
    Setting(("train", "learning_rate"), 1e-4, QUESTION),
    Setting(
        ("train", "lr_scheduler"), "cosine_with_restarts", f"{QUESTION}; one cycle, so plain cosine", _no_scheduler
    ),
    Setting(("train", "lr_warmup_steps"), 0.01, f"{ARTICLE}; Cancel gives 0.05", _no_warmup),
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
    Setting(("train", "unet_lr"), 1e-4, "the usual rate at alpha = dim / 2", unless=_rates),
    Setting(("train", "text_encoder_lr"), 5e-5, "half: the text encoder over-fits first", unless=_rates),
    Setting(("train", "lr_scheduler"), "cosine", "ends quietly: the last epoch is often good", _no_scheduler),
    Setting(("train", "lr_warmup_steps"), 0.05, "the first steps on fresh moments are the wildest", _no_warmup),
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
        unless=_debiased,
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
    return all(_given(data, key) is None for key in taken) and not setting.unless(data)


def _value(data: dict[str, Any], setting: Setting, settings: tuple[Setting, ...]) -> Any:
    """The setting's value, in proportion to the recipe's where it follows another key."""
    given = _given(data, setting.follows) if setting.follows else None
    if not isinstance(given, int | float) or given <= 0:
        return setting.value
    return setting.value * given / next(other.value for other in settings if other.at == setting.follows)


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
