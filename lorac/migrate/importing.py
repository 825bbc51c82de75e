"""`lorac import`: what was made for kohya's sd-scripts becomes a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorac.errors import InputError, Problem
from lorac.listing import exists, shown_path
from lorac.migrate import metadata, popup
from lorac.migrate.dataset import read_dataset
from lorac.migrate.draft import Draft, Entry
from lorac.migrate.kohya import carry
from lorac.migrate.names import AT
from lorac.migrate.pictures import Subset, add_subsets, seen_extension, subfolders
from lorac.migrate.settle import settle
from lorac.recipe.diagnostics import missing_path_remedy
from lorac.recipe.layers import read_file
from lorac.sd.safetensors import read_header

PASSES = 6
"""What the article answered to the popup's "how many epochs"; it counted them without regularisation."""
FEWEST, MOST, USUAL = 1000, 6000, 3000
"""Steps of a run; outside of these PASSES are no good guess."""
DEFAULT_STEPS = 1600
TRAP = "kohya's default, as the file names none: next to nothing is learnt; 1e-4 is usual"


def import_path(path: Path, reg: Path | None, out: Path | None) -> Draft:
    """The recipe for a kohya folder, a `--config_file` or `--dataset_config`, the popup's JSON, or a finished LoRA.

    `reg` is a folder of regularisation pictures, `out` the file that the recipe will be. Raises InputError.
    """
    if not exists(path):
        raise InputError([Problem("", f'"{shown_path(path)}" does not exist', missing_path_remedy(path))])
    folder = Path.cwd() if out is None else out.absolute().parent
    draft = Draft(folder, (path if path.is_dir() else path.parent).absolute())
    kinds = {".toml": _toml, ".json": _json, ".safetensors": _safetensors}
    if path.is_dir():
        _folder(path, reg, draft)
    elif path.suffix.lower() in kinds:
        kinds[path.suffix.lower()](path, reg, draft)
    else:
        remedy = "give a kohya training folder, a .toml of kohya, the popup's .json, or a LoRA's .safetensors"
        raise InputError([Problem(shown_path(path), "lorac cannot import this kind of file", remedy)])
    settle(draft)
    if draft.get("train", "epochs") is None and draft.get("train", "steps") is None:
        draft.put("train", "steps", DEFAULT_STEPS, "kohya's default, as the file's length cannot be used")
        settle(draft)
    return draft


def _folder(path: Path, reg: Path | None, draft: Draft) -> None:
    _title(draft, path, "a kohya training folder", 'It tells no settings: "kohya-2023" has the usual ones of its time.')
    draft.preset = Entry("kohya-2023", 'the settings of the article; another one is "modern"')
    subsets = _both(draft, str(path.absolute()), None if reg is None else str(reg.absolute()))
    extension = seen_extension([Path(subset.image_dir) for subset in subsets])
    if extension != ".txt":
        draft.put("caption", "extension", extension)
    _name_base(draft)
    _guess_length(draft, add_subsets(draft, subsets, extension))


def _name_base(draft: Draft) -> None:
    draft.put("train", "base", "builtin:mini", "the small one that ships; for real pictures the path of a checkpoint")


def _toml(path: Path, reg: Path | None, draft: Draft) -> None:
    data = read_file(path).data
    if "datasets" in data:
        _title(draft, path, "kohya's --dataset_config", "It tells no settings of the training: see the preset's.")
        draft.preset = Entry("kohya-2023", 'the settings of the article; another one is "modern"')
        subsets, settings = read_dataset(data, {}, draft, shown_path(path))
        subsets += _extra(draft, reg)
        samples = add_subsets(draft, subsets, settings["caption_extension"])
        carry(settings, draft)
        if "enable_bucket" not in settings:
            comment = "kohya's default: crop to a square, unless its command line has --enable_bucket"
            draft.put("train", "enable_bucket", False, comment)
        _name_base(draft)
        _guess_length(draft, samples)
        return
    _title(draft, path, "kohya's --config_file", "What the file does not say has kohya's default.")
    arguments = _flattened(data)
    if reg is not None:
        arguments["reg_data_dir"] = str(reg.absolute())
    subsets, settings = _sources_of(arguments, draft, path)
    full = arguments | settings
    defaults = _silent_defaults(full)
    full |= {name: value for name, value, _ in defaults}
    add_subsets(draft, subsets, str(full["caption_extension"]))
    carry(full, draft)
    for name, value, comment in defaults:
        section, key = AT[name]
        if draft.get(section, key) == value:
            draft.put(section, key, value, comment)
    draft.put("train", "latents", "sample", "kohya trains one frozen sample; the mean is calmer")
    if full.get("save_precision") is None:
        draft.put("output", "precision", "fp32", "kohya's default; fp16 is half the size")


def _flattened(data: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config file in one table, as kohya reads it; names of sections mean nothing."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _sources_of(arguments: dict[str, Any], draft: Draft, path: Path) -> tuple[list[Subset], dict[str, Any]]:
    """The folders of a config file, and the settings of the dataset config that it names."""
    config = arguments.get("dataset_config")
    if isinstance(config, str) and config:
        found = draft.find(config)
        if found is None:
            cause = f'dataset_config "{config}" does not exist'
            raise InputError([Problem(shown_path(path), cause, "correct its path")])
        for name in ("train_data_dir", "reg_data_dir"):
            if arguments.pop(name, None):
                draft.leave(name, "", "kohya ignores it beside dataset_config")
        return read_dataset(read_file(found).data, arguments, draft, shown_path(found))
    train = arguments.get("train_data_dir")
    if not isinstance(train, str) or not train:
        cause = "names neither train_data_dir nor dataset_config"
        raise InputError([Problem(shown_path(path), cause, "add the one that was given on kohya's command line")])
    reg = arguments.get("reg_data_dir")
    mask, prefix = bool(arguments.get("alpha_mask")), str(arguments.get("caption_prefix") or "")
    return _both(draft, train, reg if isinstance(reg, str) and reg else None, mask, prefix), {}


def _both(draft: Draft, train: str, reg: str | None, mask: bool = False, prefix: str = "") -> list[Subset]:
    """The sub-folders of a training folder and of a folder of regularisation pictures; problems of both at once."""
    subsets: list[Subset] = []
    problems: list[Problem] = []
    for text, is_reg in ((train, False), (reg, True)):
        try:
            subsets += subfolders(draft, text, is_reg=is_reg, alpha_mask=mask, prefix=prefix) if text else []
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return subsets


def _extra(draft: Draft, reg: Path | None) -> list[Subset]:
    return [] if reg is None else subfolders(draft, str(reg.absolute()), is_reg=True)


def _silent_defaults(arguments: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """kohya's defaults that are not lorac's, for what the file leaves open."""
    rows: list[tuple[str, Any, str]] = [("caption_extension", ".caption", "kohya's default")]
    rows += [("network_dim", 4, "kohya's default"), ("network_alpha", 1, "kohya's default")]
    rows += [("enable_bucket", False, "kohya's default: crop to a square")]
    if arguments.get("enable_bucket"):
        rows += [("min_bucket_reso", 256, "kohya's default"), ("max_bucket_reso", 1024, "kohya's default")]
    unet_only, text_only = (arguments.get(f"network_train_{part}_only") for part in ("unet", "text_encoder"))
    if not (arguments.get("unet_lr") or text_only) or not (arguments.get("text_encoder_lr") or unet_only):
        rows += [("learning_rate", 2e-6, TRAP)]
    if not arguments.get("max_train_epochs"):
        rows += [("max_train_steps", DEFAULT_STEPS, "kohya's default")]
    old = arguments.get("caption_extention")
    if old and arguments.get("caption_extension") is None:
        rows[0] = ("caption_extension", old, "kohya: caption_extention")
    return [row for row in rows if arguments.get(row[0]) is None]


def _json(path: Path, reg: Path | None, draft: Draft) -> None:
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError([Problem(shown_path(path), f"is not JSON: {error}", "is it the popup's file?")]) from None
    if not isinstance(data, dict) or not any(name in data for name in ("img_folder", "train_data_dir")):
        remedy = "give one that the popup of LoRA_Easy_Training_Scripts saved"
        raise InputError([Problem(shown_path(path), "names no img_folder", remedy)])
    _title(draft, path, "the popup's settings", "")
    draft.preset = Entry("kohya-2023", "what the popup and sd-scripts of its time did by themselves")
    arguments, shown = popup.arguments(data, draft)
    if reg is not None:
        arguments["reg_data_dir"] = str(reg.absolute())
    train = arguments["train_data_dir"]
    if not isinstance(train, str) or not train:
        raise InputError([Problem(shown_path(path), "img_folder is no path", "correct it")])
    reg_dir = arguments["reg_data_dir"]
    subsets = _both(draft, train, reg_dir if isinstance(reg_dir, str) and reg_dir else None)
    samples = add_subsets(draft, subsets, str(arguments["caption_extension"]))
    carry(arguments, draft, shown)
    popup.length(data, samples, draft)


def _safetensors(path: Path, reg: Path | None, draft: Draft) -> None:
    found = read_header(path).metadata
    if "ss_network_dim" not in found:
        raise InputError([Problem(shown_path(path), "tells no settings of kohya's in its metadata")])
    _title(draft, path, "what a LoRA tells of itself", "It does not tell where its pictures lay: correct the paths.")
    arguments, shown = metadata.arguments(found, draft)
    subsets = metadata.subsets(found) or [Subset("pictures", 1)]
    add_subsets(draft, subsets, ".txt")
    for name, value, _ in _silent_defaults(arguments):
        if name not in ("learning_rate", "caption_extension"):
            arguments.setdefault(name, value)
    carry(arguments, draft, shown)
    draft.put("train", "latents", "sample", "kohya trains one frozen sample; the mean is calmer")


def _guess_length(draft: Draft, samples: int | None) -> None:
    """A run as long as the article's; the folders do not tell."""
    if not samples:
        draft.put("train", "epochs", PASSES, "not told by the folders")
        return
    passes = PASSES if FEWEST <= samples * PASSES <= MOST else max(1, round(USUAL / samples))
    comment = f"{samples} samples x {passes}, without regularisation, as the article counted"
    draft.put("train", "steps", samples * passes, comment)


def _title(draft: Draft, path: Path, kind: str, note: str) -> None:
    draft.head = [f"Made from {path.name}, {kind}, by `lorac import`. See it with `lorac plan`."]
    draft.head += [note] if note else []
