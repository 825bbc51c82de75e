"""kohya's arguments that the schema has not one by one: each is read by a function of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorac.migrate.draft import Draft
from lorac.migrate.names import AT, BLOCKWISE, LR_WEIGHTS, NETWORK_SAME, NETWORK_UNSUPPORTED, OPTIMIZERS, UNSUPPORTED
from lorac.migrate.values import literal, pairs, put, unknown
from lorac.recipe.fields import DOWN_BLOCKS

Arguments = Mapping[str, Any]
Reader = Callable[[Draft, str, Any, Arguments], None]
"""(draft, the name that the user knows, value, all arguments)."""
GRID = 64
"""Pixels of which the sides of an SD 1.x checkpoint's pictures are multiples."""
NEVER = 100_000
"""The popup wrote 999999 for "save no epochs in between"."""


def _resolution(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    """`512`, "512,512" or [512, 768]: lorac has the side of the square of that area."""
    numbers = [int(n) for n in re.findall(r"\d+", str(value))]
    if not 1 <= len(numbers) <= 2 or not all(numbers):
        draft.leave(word, value, "no size; write resolution = 512")
        return
    width, height = numbers[0], numbers[-1]
    side = width if width == height else max(GRID, round(math.sqrt(width * height) / GRID) * GRID)
    comment = "" if width == height else f"kohya: {width} x {height}; lorac has the side of a square of that area"
    put(draft, ("train", "resolution"), word, side, comment)


def _bucket_side(round_: Callable[[float], int], key: str) -> Reader:
    def read(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
        if arguments.get("enable_bucket") is False:
            return
        if isinstance(value, int) and value % GRID and value > 0:
            rounded = max(GRID, round_(value / GRID) * GRID)
            put(draft, ("train", key), word, rounded, f"kohya: {value}, rounded to its steps")
        else:
            put(draft, ("train", key), word, value)

    return read


def _text_encoder_lr(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    rate = value[0] if isinstance(value, list) else value
    put(draft, ("train", "text_encoder_lr"), word, rate)


def _no_metadata(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if value:
        put(draft, ("output", "metadata"), word, False)


def _save_precision(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    put(draft, ("output", "precision"), word, "fp32" if value == "float" else value)


def _alpha(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if value == 0:
        put(draft, AT["network_alpha"], word, arguments.get("network_dim") or 4, "kohya takes 0 for dim")
    else:
        put(draft, AT["network_alpha"], word, value)


def _save_every(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    never = isinstance(value, int) and value >= NEVER
    put(draft, ("train", "save_every_n_epochs"), word, 0 if never else value)


def _optimizer(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    kind = str(value)
    found = OPTIMIZERS.get(kind.rpartition(".")[2].lower())
    if found == "adamw8bit":
        draft.put("train", "optimizer", "adamw", 'kohya: AdamW8bit; with CUDA and bitsandbytes write "adamw8bit"')
    elif found is None:
        hint = 'lorac has adamw, lion, prodigy, adafactor and adamw_schedule_free; "prodigy" is nearest to D-Adaptation'
        draft.leave(word, value, hint if kind.lower().startswith("dadapt") else hint.partition(";")[0])
    else:
        draft.put("train", "optimizer", found, "" if found == kind.lower() else f"kohya: {kind}")


def _switch(kind: str) -> Reader:
    """kohya's older switches for an optimizer_type."""

    def read(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
        if value:
            _optimizer(draft, word, kind, arguments)

    return read


def _optimizer_args(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    rest: dict[str, Any] = {}
    for name, text in pairs(value).items():
        found = literal(text)
        if name in ("weight_decay", "betas", "eps"):
            put(draft, ("train", name), f"{word}: {name}", list(found) if isinstance(found, tuple) else found)
        elif isinstance(found, bool | int | float | str):
            rest[name] = found
        else:
            draft.leave(f"{word}: {name}", text, "lorac takes numbers, strings, true and false")
    if rest:
        draft.put("train", "optimizer_args", rest)


def _scheduler_args(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    for name, text in pairs(value).items():
        if name == "step_rules":
            put(draft, ("train", "lr_scheduler_step_rules"), f"{word}: {name}", str(literal(text)))
        else:
            draft.leave(f"{word}: {name}", text, "lorac has kohya's own schedulers only")


def _network_args(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    given = pairs(value)
    unread = not any(name in given for name in BLOCKWISE)
    for name, text in given.items():
        label = f"{word}: {name}"
        if name == "rs_lora":
            put(draft, ("network", "rslora"), label, text)
        elif name == "dropout":
            put(draft, ("network", "dropout"), label, text)
        elif name == "algo" and text.lower() in ("lora", "locon"):
            continue
        elif name in ("down_lr_weight", "up_lr_weight"):
            put(draft, ("network", name), label, _lr_weights(text))
        elif name == "mid_lr_weight":
            put(draft, ("network", name), label, text.split(",")[0])
        elif name in NETWORK_SAME:
            comment = "kohya ignores it without block_dims or lr weights" if unread and "conv_block" in name else ""
            parts = [part.strip() for part in text.split(",")]
            put(draft, AT[name], label, parts if "block" in name else text, comment)
        else:
            why = NETWORK_UNSUPPORTED.get(name) or unknown(name, [*NETWORK_SAME, *NETWORK_UNSUPPORTED])
            draft.leave(label, text, why)


def _lr_weights(text: str) -> list[float] | str:
    """Twelve factors, as kohya's get_block_lr_weight makes them of a list or of a name such as `sine+0.25`."""
    name, _, least = text.partition("+")
    last = DOWN_BLOCKS - 1
    try:
        if name not in LR_WEIGHTS:
            weights = [float(part) if part.strip() else 0.0 for part in text.split(",")][:DOWN_BLOCKS]
            return weights + [1.0] * (DOWN_BLOCKS - len(weights))
        base = float(least or 0)
    except ValueError:
        return text
    ramp = [i / last for i in range(DOWN_BLOCKS)]
    shape = {
        "sine": [math.sin(math.pi * x / 2) for x in ramp],
        "cosine": [math.sin(math.pi * x / 2) for x in reversed(ramp)],
        "linear": ramp,
        "reverse_linear": ramp[::-1],
        "zeros": [0.0] * DOWN_BLOCKS,
    }[name]
    return [round(x + base, 6) for x in shape]


def _network_module(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if value != "networks.lora":
        hint = "lorac trains LoRA, LoCon (conv_dim) and DoRA on kohya's modules"
        draft.leave(word, value, f"{hint}; LyCORIS takes more of them" if "lycoris" in str(value) else hint)


def _targets(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if value:
        part = "unet" if arguments.get("network_train_unet_only") else "text_encoder"
        draft.put("network", "targets", [part], "kohya: train this part only")


def _caption_separator(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if value != ",":
        draft.leave(word, value, UNSUPPORTED["caption_separator"])


def _save_model_as(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if value != "safetensors":
        draft.leave(word, value, UNSUPPORTED["save_model_as"])


def _sampler(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    if arguments.get("sample_prompts"):
        put(draft, ("sample", "sampler"), word, str(value).removeprefix("k_"))
    else:
        draft.leave(word, value, "counts only with sample_prompts")


def _sample_prompts(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    """kohya's prompt file: a prompt a line, with `--n negative`, `--w`, `--h`, `--s steps`, `--l scale`, `--d seed`."""
    file = draft.find(str(value))
    if file is None or file.suffix.lower() != ".txt":
        draft.leave(word, value, "copy the prompts into [sample]; lorac reads .txt files that are here")
        return
    prompts: list[Any] = []
    for line in file.read_text("utf-8-sig", "replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        text, *options = line.strip().split(" --")
        given = {name.lower(): rest.strip() for name, _, rest in (option.partition(" ") for option in options)}
        prompts.append({"prompt": text, "negative": given["n"]} if "n" in given else text)
        for letter, key in (("w", "width"), ("h", "height"), ("s", "steps"), ("l", "cfg_scale"), ("d", "seed")):
            if letter in given and draft.get("sample", key) is None:
                put(draft, ("sample", key), f"{word}: --{letter}", given[letter])
    if prompts:
        draft.put("sample", "prompts", prompts, f"from {Path(str(value).replace(chr(92), '/')).name}")


def _notes(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    draft.put("output", "notes", str(value), f"kohya: {word}")


def _trigger_phrase(draft: Draft, word: str, value: Any, arguments: Arguments) -> None:
    draft.leave(word, value, "lorac writes the triggers of [[source]]")


SPECIAL: dict[str, Reader] = {
    "resolution": _resolution,
    "min_bucket_reso": _bucket_side(math.floor, "min_bucket_reso"),
    "max_bucket_reso": _bucket_side(math.ceil, "max_bucket_reso"),
    "text_encoder_lr": _text_encoder_lr,
    "no_metadata": _no_metadata,
    "save_precision": _save_precision,
    "network_alpha": _alpha,
    "save_every_n_epochs": _save_every,
    "optimizer_type": _optimizer,
    "use_8bit_adam": _switch("AdamW8bit"),
    "use_lion_optimizer": _switch("Lion"),
    "optimizer_args": _optimizer_args,
    "lr_scheduler_args": _scheduler_args,
    "network_args": _network_args,
    "network_module": _network_module,
    "network_train_unet_only": _targets,
    "network_train_text_encoder_only": _targets,
    "caption_separator": _caption_separator,
    "save_model_as": _save_model_as,
    "sample_sampler": _sampler,
    "sample_prompts": _sample_prompts,
    "metadata_description": _notes,
    "metadata_usage_hint": _notes,
    "metadata_trigger_phrase": _trigger_phrase,
}
