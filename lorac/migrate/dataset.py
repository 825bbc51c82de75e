"""kohya's `--dataset_config`: folders with settings of their own, of which lorac has most for the whole recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorac.errors import InputError, Problem
from lorac.migrate.draft import Draft
from lorac.migrate.names import words
from lorac.migrate.pictures import Subset
from lorac.migrate.values import unknown

OF_DATASET = words(
    """
    batch_size resolution enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale
    validation_seed validation_split network_multiplier resize_interpolation debug_dataset max_token_length
    prior_loss_weight
    """
)
OF_SUBSET = words(
    """
    shuffle_caption keep_tokens keep_tokens_separator secondary_separator caption_separator enable_wildcard
    caption_suffix caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_min
    token_warmup_step color_aug flip_aug face_crop_aug_range random_crop custom_attributes resize_interpolation
    caption_extension cache_info validation_seed validation_split
    """
)
OWN = words(
    """
    image_dir num_repeats class_tokens is_reg alpha_mask caption_prefix metadata_file conditioning_data_dir
    """
)
"""What lorac, too, has for each folder, or cannot have at all."""
KNOWN = sorted(OF_DATASET | OF_SUBSET | OWN)
DEFAULTS = {"shuffle_caption": False, "keep_tokens": 0, "caption_extension": ".caption", "flip_aug": False}


def read_dataset(
    data: Mapping[str, Any], arguments: Mapping[str, Any], draft: Draft, where: str
) -> tuple[list[Subset], dict[str, Any]]:
    """The folders, and the settings under their names on kohya's command line, which `arguments` are.

    Raises InputError for what kohya itself could not read.
    """
    problems: list[Problem] = []
    general = data.get("general", {})
    if not isinstance(general, dict):
        raise InputError([Problem(where, "general is not a table", "write it as [general]")])
    for name in data:
        if name not in ("general", "datasets"):
            draft.leave(name, data[name], unknown(name, ["general", "datasets"]))
    _report_unknown(draft, general, "general")
    of_subsets: list[tuple[Subset, dict[str, Any]]] = []
    of_datasets: list[tuple[str, dict[str, Any]]] = []
    base = {name: value for name, value in arguments.items() if name in OF_DATASET | OF_SUBSET | OWN}
    for number, dataset in enumerate(_tables(data, "datasets", where, problems)):
        _report_unknown(draft, {n: v for n, v in dataset.items() if n != "subsets"}, "datasets")
        inherited = {**base, **general, **dataset}
        of_datasets.append((f"datasets[{number}]", {n: v for n, v in inherited.items() if n in OF_DATASET}))
        for table in _tables(dataset, "subsets", where, problems):
            _report_unknown(draft, table, "subsets")
            values = {**DEFAULTS, **inherited, **table}
            subset = _subset(values, where, problems)
            of_subsets.append((subset, {n: v for n, v in values.items() if n in OF_SUBSET - OF_DATASET}))
    if problems:
        raise InputError(problems)
    of_subsets.sort(key=lambda pair: pair[0].is_reg)
    settings = _agreed(draft, of_datasets) | _agreed(draft, [(s.image_dir, values) for s, values in of_subsets])
    if "batch_size" in settings:
        settings["train_batch_size"] = settings.pop("batch_size")
    return [subset for subset, _ in of_subsets], settings


def _subset(values: Mapping[str, Any], where: str, problems: list[Problem]) -> Subset:
    folder, repeats = values.get("image_dir"), values.get("num_repeats", 1)
    if not isinstance(folder, str) or not folder:
        cause, remedy = "a subset has no image_dir", 'add image_dir = "…"'
        if "metadata_file" in values:
            cause, remedy = f"{cause}, only a metadata_file", "lorac reads pictures with text files beside them"
        problems.append(Problem(where, cause, remedy))
        folder = "."
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        cause = f"num_repeats of {folder} is {repeats!r}"
        problems.append(Problem(where, cause, "give a whole number of at least 1"))
        repeats = 1
    return Subset(
        folder,
        repeats,
        str(values.get("class_tokens") or ""),
        bool(values.get("is_reg")),
        bool(values.get("alpha_mask")),
        str(values.get("caption_prefix") or ""),
    )


def _agreed(draft: Draft, given: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One value of each setting: the first folder's; what others have is left with its name."""
    agreed: dict[str, Any] = {}
    for label, values in given:
        for name, value in values.items():
            if agreed.setdefault(name, value) != value:
                why = f"lorac has one {name} for all folders and took {agreed[name]!r}, the first's"
                draft.leave(f"{label}: {name}", value, why)
    return agreed


def _report_unknown(draft: Draft, table: Mapping[str, Any], section: str) -> None:
    for name, value in table.items():
        if name not in KNOWN and not (section == "datasets" and name == "subsets"):
            draft.leave(f"{section}: {name}", value, unknown(name, KNOWN).replace("ignores", "refuses"))


def _tables(table: Mapping[str, Any], name: str, where: str, problems: list[Problem]) -> list[Mapping[str, Any]]:
    header = f"[[{'datasets.' if name == 'subsets' else ''}{name}]]"
    value = table.get(name)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    problems.append(Problem(where, f"there is no {header}", f"add one {header}"))
    return []
