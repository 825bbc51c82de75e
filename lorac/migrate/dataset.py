"""kohya's `--dataset_config`: folders with settings of their own, of which lorac has most for the whole recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorac.errors import InputError, Problem
from lorac.migrate.draft import Draft, toml
from lorac.migrate.names import SAME, words
from lorac.migrate.pictures import Subset
from lorac.migrate.values import unknown

OF_DATASET = words(
    """
    batch_size resolution enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale
    validation_seed validation_split network_multiplier debug_dataset max_token_length prior_loss_weight
    """
)
OF_SUBSET = words(
    """
    shuffle_caption keep_tokens keep_tokens_separator secondary_separator caption_separator enable_wildcard
    caption_suffix caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_min
    token_warmup_step color_aug flip_aug face_crop_aug_range random_crop custom_attributes resize_interpolation
    caption_extension cache_info
    """
)
OWN = words(
    """
    image_dir num_repeats class_tokens is_reg alpha_mask caption_prefix metadata_file conditioning_data_dir
    """
)
"""What lorac, too, has for each folder, or cannot have at all."""
KNOWN = sorted(OF_DATASET | OF_SUBSET | OWN)
DEFAULTS: dict[str, Any] = {
    "batch_size": 1,
    "enable_bucket": False,
    "min_bucket_reso": 256,
    "max_bucket_reso": 1024,
    "bucket_reso_steps": 64,
    "bucket_no_upscale": False,
    "validation_split": 0.0,
    "network_multiplier": 1.0,
    "debug_dataset": False,
    "prior_loss_weight": 1.0,
    "shuffle_caption": False,
    "keep_tokens": 0,
    "caption_separator": ",",
    "enable_wildcard": False,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_min": 1,
    "token_warmup_step": 0,
    "color_aug": False,
    "flip_aug": False,
    "random_crop": False,
    "caption_extension": ".caption",
    "cache_info": False,
}
"""kohya's for what neither the file nor the command line says (sd-scripts' config_util.py); others have none."""
CERTAIN = ("shuffle_caption", "keep_tokens", "caption_extension", "flip_aug")
"""Those that win over a preset even where no folder names them."""
READ = SAME | {"batch_size"}
"""Those that lorac has, too; of others a default is nothing to speak of."""
ON_COMMAND_LINE = {
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
    "caption_extention": "caption_extension",
}
"""Names of the command line that differ from the file's."""


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
    said = {ON_COMMAND_LINE.get(name, name): value for name, value in arguments.items()}
    base = {name: value for name, value in said.items() if name in KNOWN and value is not None}
    for number, dataset in enumerate(_tables(data, "datasets", where, problems)):
        _report_unknown(draft, {n: v for n, v in dataset.items() if n != "subsets"}, "datasets")
        inherited = {**base, **general, **dataset}
        of_datasets.append((f"datasets[{number}]", {n: v for n, v in inherited.items() if n in OF_DATASET}))
        for table in _tables(dataset, "subsets", where, problems):
            _report_unknown(draft, table, "subsets")
            values = {**{name: DEFAULTS[name] for name in CERTAIN}, **inherited, **table}
            subset = _subset(values, where, problems)
            of_subsets.append((subset, {n: v for n, v in values.items() if n in OF_SUBSET}))
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
    """One value of each setting that any folder names: the first's, or kohya's default where the first names none.

    What others have is left with their name.
    """
    names = dict.fromkeys(name for _, values in given for name in values)
    agreed = {name: _value(given[0][1], name) for name in names}
    for label, values in given[1:]:
        for name in names:
            value, first = _value(values, name), agreed[name]
            if _plain(name, value) != _plain(name, first):
                took = "the first has none" if first is None else f"took {toml(first)}, the first's"
                why = f"lorac has one {name} for all folders and {took}"
                draft.leave(f"{label}: {name}", "" if value is None else value, why)
    return {name: value for name, value in agreed.items() if name in READ or value != DEFAULTS.get(name)}


def _value(values: Mapping[str, Any], name: str) -> Any:
    return values.get(name, DEFAULTS.get(name))


def _plain(name: str, value: Any) -> Any:
    """A size in its long form: 512 is [512, 512]."""
    return [value, value] if name == "resolution" and isinstance(value, int) else value


def _report_unknown(draft: Draft, table: Mapping[str, Any], section: str) -> None:
    for name, value in table.items():
        if section == "subsets" and name in OF_DATASET:
            draft.leave(f"{section}: {name}", value, "kohya has it for whole datasets and refuses it here")
        elif name not in KNOWN and not (section == "datasets" and name == "subsets"):
            draft.leave(f"{section}: {name}", value, unknown(name, KNOWN).replace("ignores", "refuses"))


def _tables(table: Mapping[str, Any], name: str, where: str, problems: list[Problem]) -> list[Mapping[str, Any]]:
    header = f"[[{'datasets.' if name == 'subsets' else ''}{name}]]"
    value = table.get(name)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    problems.append(Problem(where, f"there is no {header}", f"add one {header}"))
    return []
