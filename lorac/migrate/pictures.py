"""kohya's folders become [[source]] and [[regularisation]] tables, after a look at what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorac.captions import split_tags
from lorac.errors import InputError, Problem
from lorac.listing import EXTENSIONS, shown_path
from lorac.migrate.draft import Draft, Entry
from lorac.migrate.look import Look, extensions, look

DROPPED = 'kohya would have trained the hidden RGB under it; "drop" repeats that'
CAPTIONS = (".txt", ".caption")
FOLDERS_NAME = "the folder's name"


@dataclass(frozen=True)
class Subset:
    """One of kohya's folders of pictures. `named` is how the comment calls its repeats' origin."""

    image_dir: str
    repeats: int = 1
    class_tokens: str = ""
    is_reg: bool = False
    alpha_mask: bool = False
    prefix: str = ""
    named: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def subfolders(draft: Draft, text: str, *, is_reg: bool, alpha_mask: bool = False, prefix: str = "") -> list[Subset]:
    """The sub-folders such as 36_riho of a kohya folder; the folder itself if it is not here.

    Raises InputError if it is here and has none.
    """
    folder = draft.find(text)
    if folder is None:
        return [Subset(text, 0, "", is_reg, alpha_mask, prefix)]
    if not folder.is_dir():
        raise InputError(
            [Problem(shown_path(folder), "is no folder", "give the folder that holds 36_riho and the like")]
        )
    found = []
    for part in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        number, _, tokens = part.name.partition("_")
        try:
            repeats = int(number)
        except ValueError:
            repeats = 0
        if repeats > 0 and _holds_pictures(part):
            found.append(Subset(str(part), repeats, tokens, is_reg, alpha_mask, prefix, FOLDERS_NAME))
        elif _holds_pictures(part):
            draft.leave("folder", part.name, "kohya ignores folders without a number of repeats, as in 10_name")
    loose = sum(count for kind, count in extensions(folder).items() if kind in EXTENSIONS)
    if loose and found:
        draft.leave("pictures", f"{loose} in {folder.name} itself", "kohya reads its sub-folders only")
    if not found:
        cause = "has no sub-folder such as 36_riho with pictures in it"
        remedy = "give the folder that kohya calls train_data_dir, or see `lorac init`"
        if loose and folder.absolute().name.partition("_")[0].isdecimal():
            remedy = f"give the folder around it, {shown_path(folder.absolute().parent)}"
        raise InputError([Problem(shown_path(folder), cause, remedy)])
    return found


def _holds_pictures(folder: Path) -> bool:
    return any(count for kind, count in extensions(folder).items() if kind in EXTENSIONS)


def seen_extension(folders: Sequence[Path]) -> str:
    """The extension of captions that the folders hold most of; ".txt" if none."""
    counts = {kind: sum(extensions(folder)[kind] for folder in folders if folder.is_dir()) for kind in CAPTIONS}
    return max(CAPTIONS, key=lambda kind: counts[kind])


def add_subsets(draft: Draft, subsets: Sequence[Subset], extension: str) -> int | None:
    """Put the folders into the draft; the samples of an epoch without regularisation, None if some are not here.

    Raises InputError with what is wrong in any folder.
    """
    problems: list[Problem] = []
    samples: int | None = 0
    for subset in subsets:
        folder = draft.find(subset.image_dir)
        try:
            seen = look(folder, extension) if folder is not None else None
        except InputError as error:
            problems += error.problems
            continue
        table = _table(draft, subset, folder, seen, extension)
        (draft.regularisation if subset.is_reg else draft.sources).append(table)
        if not subset.is_reg and samples is not None:
            samples = samples + seen.count * subset.repeats if seen is not None else None
    if problems:
        raise InputError(problems)
    return samples


def _table(draft: Draft, subset: Subset, folder: Path | None, seen: Look | None, extension: str) -> dict[str, Entry]:
    kind = "regularisation folder" if subset.is_reg else "picture folder"
    table = {"path": draft.path(subset.image_dir, kind)}
    if subset.repeats:
        table["repeats"] = Entry(subset.repeats, f"from {subset.named}" if subset.named else "")
    if seen is not None and folder is not None:
        _say_about_captions(draft, subset, folder, seen, extension)
    if subset.is_reg:
        if subset.class_tokens and (seen is None or seen.captioned < seen.count):
            table["caption"] = Entry(_normal(subset.class_tokens), "of pictures without a caption")
    elif subset.repeats:
        table["trigger"] = _trigger(subset, seen)
    if seen is not None:
        _say_about_tokens(draft, subset, seen, table)
    if seen is not None and seen.transparent:
        table["alpha"] = Entry("white", DROPPED)
    if subset.alpha_mask:
        table["alpha_mask"] = Entry(True)
    return table


def _trigger(subset: Subset, seen: Look | None) -> Entry:
    """The words that call what is learnt, so that lorac's captions are kohya's."""
    words = split_tags(subset.prefix)
    prefixed = "kohya: caption_prefix" if words else ""
    tokens = split_tags(subset.class_tokens)
    if seen is None or not seen.captioned:
        return Entry([*words, *tokens], prefixed or "the class tokens: there are no captions")
    if seen.captioned < seen.count and not words:
        return Entry(tokens, f"{seen.count - seen.captioned} of {seen.count} pictures have no caption; now all get it")
    if seen.common is not None:
        return Entry([*words, seen.common], prefixed or f"all {seen.captioned} captions begin with it")
    return Entry(words, prefixed or "captions stay as they are; name the words that shall call what is learnt")


def _say_about_tokens(draft: Draft, subset: Subset, seen: Look, table: Mapping[str, Entry]) -> None:
    """Class tokens that are nowhere in the recipe: those of pictures with captions, which kohya does not read either,
    and those of some pictures beside a prefix of all."""
    name = f"{subset.image_dir}: class_tokens"
    used = [*split_tags(table["caption"].value)] if "caption" in table else []
    used += table["trigger"].value if "trigger" in table else []
    if set(split_tags(subset.class_tokens)) <= set(used):
        return
    if seen.captioned < seen.count:
        without = f"{seen.count - seen.captioned} of {seen.count} pictures, which have no caption"
        why = f"kohya trains it for {without}; write one"
        draft.leave(name, subset.class_tokens, why)
    elif subset.named != FOLDERS_NAME:  # which the path shows
        draft.leave(name, subset.class_tokens, "all its pictures have captions, and kohya reads those alone")


def _say_about_captions(draft: Draft, subset: Subset, folder: Path, seen: Look, extension: str) -> None:
    others = {kind: extensions(folder)[kind] for kind in CAPTIONS if kind != extension}
    for kind, count in others.items():
        if count and not seen.captioned:
            text = f'{shown_path(folder)}: {count} {kind} files are not read, as kohya read "{extension}" here'
            draft.warnings.append(f'{text}; write extension = "{kind}" in [caption] if they are the captions')
    if seen.captioned < seen.count and not split_tags(subset.class_tokens + subset.prefix) and not subset.is_reg:
        text = f"{shown_path(folder)}: {seen.count - seen.captioned} pictures have no caption and no class tokens"
        draft.warnings.append(f"{text}; write captions, or give the source trigger words")


def _normal(class_tokens: str) -> str:
    return ", ".join(split_tags(class_tokens))
