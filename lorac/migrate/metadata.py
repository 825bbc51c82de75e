"""The settings that a finished LoRA tells of itself (kohya's ss_ keys), as kohya's arguments."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from lorac.migrate.draft import Draft
from lorac.migrate.names import AT, SAME
from lorac.migrate.pictures import Subset

OTHER = {
    "ss_debiased_estimation": "debiased_estimation_loss",
    "ss_batch_size_per_device": "train_batch_size",
    "ss_sd_model_name": "pretrained_model_name_or_path",
    "ss_vae_name": "vae",
    "ss_resolution": "resolution",
    "ss_text_encoder_lr": "text_encoder_lr",
    "ss_network_module": "network_module",
    "ss_network_args": "network_args",
    "ss_v2": "v2",
}
"""Names that are not `ss_` and the argument's own."""
_ARGUMENT = re.compile(r"\w+=(?:\([^)]*\)|[^,()]+)")
NOT_LENGTH = frozenset(("max_train_epochs",))


def arguments(metadata: Mapping[str, str], draft: Draft) -> tuple[dict[str, Any], dict[str, str]]:
    """kohya's arguments and their names in the file."""
    names = {f"ss_{name}": name for name in SAME - NOT_LENGTH if name in AT} | OTHER
    found = {argument: _value(metadata[key]) for key, argument in names.items() if key in metadata}
    for listed in _listed(metadata):
        first = {f"ss_{name}": value for name, value in (listed[0] if listed else {}).items()}
        found |= {names[key]: value for key, value in first.items() if key in names and names[key] not in found}
    shown = {argument: key for key, argument in names.items()}
    optimizer = re.match(r"[\w.]+", metadata.get("ss_optimizer", ""))
    if optimizer and optimizer[0] != "None":
        found["optimizer_type"] = optimizer[0].rpartition(".")[2]
        found["optimizer_args"] = _ARGUMENT.findall(metadata["ss_optimizer"], optimizer.end())
    return {name: value for name, value in found.items() if value is not None}, shown


def subsets(metadata: Mapping[str, str]) -> list[Subset]:
    """The folders, by name: the file does not tell where they lay."""
    if found := [subset for subset in map(_subset, _listed(metadata)[1]) if subset is not None]:
        return found
    for key, is_reg in (("ss_dataset_dirs", False), ("ss_reg_dataset_dirs", True)):
        dirs = _value(metadata.get(key, ""))
        for name, facts in dirs.items() if isinstance(dirs, dict) else ():
            repeats = facts.get("n_repeats") if isinstance(facts, dict) else None
            tokens = name.partition("_")[2] if re.match(r"\d+_", name) else ""
            if isinstance(repeats, int) and repeats > 0:
                found.append(Subset(f"pictures/{name}", repeats, tokens, is_reg, named="the file's metadata"))
    return found


def _listed(metadata: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The datasets and subsets of a run from a dataset config, which kohya lists instead of single settings."""
    value = _value(metadata.get("ss_datasets", ""))
    datasets = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    parts = [dataset.get("subsets") for dataset in datasets]
    return datasets, [item for part in parts if isinstance(part, list) for item in part if isinstance(item, dict)]


def _subset(facts: Mapping[str, Any]) -> Subset | None:
    name, repeats = facts.get("image_dir"), facts.get("num_repeats")
    if not isinstance(name, str) or not isinstance(repeats, int) or repeats < 1:
        return None
    tokens, prefix = str(facts.get("class_tokens") or ""), str(facts.get("caption_prefix") or "")
    return Subset(f"pictures/{name}", repeats, tokens, bool(facts.get("is_reg")), False, prefix, "the file's metadata")


def _value(text: str) -> Any:
    """A value that kohya wrote as text: JSON, Python's word for it, or plain."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError):
            continue
        return list(value) if isinstance(value, tuple) else value
    return text or None
