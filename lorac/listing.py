"""Which pictures a path means: folders, globs and kohya training folders, in an order that no system changes.

A folder is read once with `os.scandir`, and the stat results come along, so that nobody has to ask for them again.
Paths are strings, because 10,000 pictures with captions would take longer to wrap in `Path` than to list.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from fnmatch import translate
from glob import escape
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import msgspec

from lorac.errors import InputError, Problem

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
_NUMBERED = re.compile(r"[+-]?\d+")


class Picture(msgspec.Struct, frozen=True, gc=False):
    """A picture and the text file of the same stem beside it. `name` is relative, with `/`, in Unicode's NFC form."""

    name: str
    path: str
    stat: os.stat_result
    caption_path: str | None = None
    caption_stat: os.stat_result | None = None


class KohyaFolder(NamedTuple):
    """`36_izumi_riho`: 36 repeats, class tokens `izumi_riho`."""

    folder: Path
    repeats: int
    class_tokens: str


def shown_path(path: Path | str) -> str:
    """`path` as messages name it: relative to the working directory when inside it, with forward slashes."""
    path = Path(os.path.normpath(path))
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


def exists(path: Path) -> bool:
    """Whether there is something at `path` that can be reached; never raises, unlike `Path.exists`."""
    try:
        return path.exists()
    except OSError:
        return False


def pictures(path: Path | str, extension: str = ".txt", where: str = "") -> list[Picture]:
    """The pictures that `path` (absolute: a folder, a file or a glob) means, sorted by name; folders are not recursed.

    `where` is named in problems instead of the path. Raises InputError with everything that is wrong: nothing there,
    no pictures, broken links, two pictures whose names differ only in extension, case or Unicode form.
    """
    root, pattern = split_glob(Path(path))
    place = where or shown_path(path)
    if not pattern and root.is_file():
        root, pattern = root.parent, (escape(root.name),)
    if not root.is_dir():
        raise InputError([Problem(place, f'the folder "{shown_path(root)}" does not exist')])
    found: list[Picture] = []
    seen: Counter[str] = Counter()
    problems: list[Problem] = []
    match = _compiled(pattern[-1]) if pattern else None
    try:
        for folder, prefix in dict.fromkeys(_folders(str(root), "", pattern[:-1])):
            _scan(folder, prefix, match, extension.lower(), found, seen, problems)
    except OSError as error:
        raise InputError([_unreadable(place, error)]) from error
    if not found and not problems:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items()))
        remedy = f"lorac reads {' '.join(sorted(EXTENSIONS))}"
        problems.append(
            Problem(place, f'no pictures in "{shown_path(path)}"' + (f", only {what}" if what else ""), remedy)
        )
    found.sort(key=lambda picture: picture.name)
    problems += _duplicates(found)
    if problems:
        raise InputError(problems)
    return found


def split_glob(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that surely is one, and the parts of the glob below it; a name that exists is never a glob."""
    parts = path.parts
    for i, part in enumerate(parts):
        if any(sign in part for sign in "*?[") and not exists(Path(*parts[: i + 1])):
            rest = parts[i:]
            return Path(*parts[:i]), (*rest, "*") if rest[-1] == "**" else rest
    return path, ()


def expand(path: Path, where: str = "") -> list[KohyaFolder]:
    """The sub-folders of a kohya training folder, sorted by name; empty when `path` is an ordinary folder.

    kohya ignores sub-folders without a number in silence; here one that holds pictures is a problem, as are pictures
    beside the numbered sub-folders. Raises InputError.
    """
    place = where or shown_path(path)
    try:
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError([_unreadable(place, error)]) from error
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    numbered = [name for name in folders if "_" in name and _NUMBERED.fullmatch(name.split("_")[0])]
    if not numbered:
        return []
    problems = []
    loose = sorted(entry.name for entry in visible if not entry.is_dir() and _extension(entry.name) in EXTENSIONS)
    if loose:
        cause = f'"{path.name}" holds pictures ({loose[0]}) beside kohya sub-folders ({numbered[0]})'
        problems.append(Problem(place, cause, "move the pictures, or name a sub-folder in path"))
    for name in folders:
        if name not in numbered and _holds_pictures(path / name):
            cause = f'the sub-folder "{name}" of "{path.name}" has no number of repeats'
            problems.append(Problem(place, cause, "name it like 10_word, or move it away"))
    parts = [KohyaFolder(path / name, int(name.split("_")[0]), name.partition("_")[2]) for name in numbered]
    for part in parts:
        if part.repeats < 1:
            problems.append(Problem(place, f'"{part.folder.name}" means {part.repeats} repeats', "give at least 1"))
    if problems:
        raise InputError(problems)
    return parts


def _unreadable(place: str, error: OSError) -> Problem:
    return Problem(place, f'the folder "{shown_path(error.filename)}" cannot be read: {error.strerror}')


def _extension(name: str) -> str:
    return Path(name).suffix.lower()


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_extension(entry.name) in EXTENSIONS for entry in entries)


def _compiled(pattern: str) -> re.Pattern[str]:
    """One part of a glob; case never counts, so that a recipe means the same pictures on every system."""
    return re.compile(translate(pattern), re.IGNORECASE)


def _folders(folder: str, prefix: str, pattern: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The folders below `folder` that a glob's leading parts mean, with their names relative to the first."""
    if not pattern:
        yield folder, prefix
        return
    anywhere = pattern[0] == "**"
    match = _compiled(pattern[0])
    if anywhere:
        yield from _folders(folder, prefix, pattern[1:])
    with os.scandir(folder) as entries:
        below = [entry for entry in entries if match.match(entry.name) and not entry.name.startswith(".")]
    for entry in below:
        if entry.is_dir(follow_symlinks=not anywhere):
            yield from _folders(entry.path, f"{prefix}{entry.name}/", pattern if anywhere else pattern[1:])


def _scan(
    folder: str,
    prefix: str,
    match: re.Pattern[str] | None,
    extension: str,
    found: list[Picture],
    seen: Counter[str],
    problems: list[Problem],
) -> None:
    """Add the pictures of one folder to `found` and the kinds of everything else to `seen`."""
    candidates: list[tuple[str, os.DirEntry[str]]] = []
    captions: dict[str, os.DirEntry[str]] = {}
    others: Counter[str] = Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            dot = name.rfind(".")
            kind = name[dot:].lower() if dot > 0 else ""
            if kind in EXTENSIONS and (match is None or match.match(name)):
                candidates.append((name[:dot], entry))
            elif kind == extension:
                captions[name[:dot]] = entry
            else:
                others["folders" if entry.is_dir() else kind or "without extension"] += 1
    seen.update(others)
    seen[extension] += len(captions)
    seen += Counter()
    for stem, entry in candidates:
        caption = captions.get(stem)
        try:
            info = entry.stat()
            caption_info = caption.stat() if caption is not None else None
            name = prefix + entry.name
            if not name.isascii():
                name.encode()
                name = normalize("NFC", name)
        except OSError as error:
            problems.append(
                Problem(shown_path(entry.path), f"cannot be read: {error.strerror}", "is it a broken link?")
            )
            continue
        except UnicodeEncodeError:
            problems.append(Problem(repr(entry.path), "the file name is not Unicode", "rename it"))
            continue
        if stat.S_ISREG(info.st_mode):
            found.append(Picture(name, entry.path, info, caption.path if caption is not None else None, caption_info))


def _duplicates(found: list[Picture]) -> list[Problem]:
    """Pictures that would share one caption file, here or on a file system that ignores case."""
    first: dict[str, Picture] = {}
    problems = []
    for picture in found:
        stem = picture.name[: picture.name.rindex(".")]
        other = first.setdefault(normalize("NFC", stem.casefold()), picture)
        if other is not picture:
            cause = f"has the same name as {other.name.rpartition('/')[2]}, so both would share one caption"
            problems.append(Problem(shown_path(picture.path), cause, "rename one of them"))
    return problems
