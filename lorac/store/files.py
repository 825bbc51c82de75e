"""The only place that flushes, renames or deletes files.

A file appears under its name complete or not at all: write a temporary file beside it, flush it to the disk, rename it,
flush the folder. `fsync` costs about 2 ms a file and the rename 0.02 ms, so small blobs live in SQLite instead.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorac.errors import StoreError

ABANDONED_SECONDS = 3600
"""A temporary file that nobody has touched for so long belongs to a process that was killed."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp")


def nothing_left(folder: Path) -> bool:
    """Whether the folder's disk has less left than SQLite's shared memory takes."""
    return shutil.disk_usage(folder).free < 64 * 1024


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into messages with a remedy."""
    try:
        yield
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> StoreError:
    """What to tell the user when `path` could not be written."""
    if is_full(error):
        text = "no space left on the disk; free some space and build again: what is finished is kept"
    elif isinstance(error, PermissionError):
        text = f"cannot be written: {error.strerror}; check its permissions, and close programs that have it open"
    else:
        text = f"cannot be written: {error.strerror or error}; check the folder and its disk"
    return StoreError(f"{path}: {text}")


def is_full(error: BaseException | None) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def temporary(folder: Path) -> Path:
    """A new name in a folder, which `sweep` recognises. The folder is made."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{uuid.uuid4().hex[:12]}.tmp"


def write(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path`, replacing what is there in one step; not flushed."""
    install(stage(data, path), path)


def stage(source: Path | bytes | memoryview, path: Path) -> Path:
    """A copy of `source` beside `path`, for `install`; not flushed, because it can be made again."""
    beside = temporary(path.parent)
    with removed_on_error(beside), explained(path):
        if isinstance(source, Path):
            shutil.copyfile(source, beside)
        else:
            beside.write_bytes(source)
    return beside


@contextmanager
def opened(path: Path) -> Iterator[Callable[[bytes], object]]:
    """`with opened(path) as write`: only what goes wrong in writing is explained, not where the data comes from."""
    with explained(path):
        file = path.open("wb")
    try:

        def write(data: bytes) -> None:
            with explained(path):
                file.write(data)

        yield write
        with explained(path):
            file.flush()
    finally:
        with suppress(OSError):  # closing flushes again what could not be written
            file.close()


def install(finished: Path, path: Path) -> None:
    """Put a finished file of the same disk in its place, in one step; not flushed."""
    with removed_on_error(finished), explained(path):
        os.replace(finished, path)


def adopt(finished: Path, path: Path) -> None:
    """As `install`; and when it returns, a power cut cannot undo it."""
    with removed_on_error(finished), explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _flush(finished)
        os.replace(finished, path)
        _flush_folder(path.parent)


def adopt_blob(finished: Path, path: Path, *, durable: bool = True) -> None:
    """Move a finished file to the name that its content gives it.

    Windows refuses while a reader has the target open; but a target that is there holds what we were to write.
    """
    with removed_on_error(finished), explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            _flush(finished)
        try:
            os.replace(finished, path)
        except PermissionError:
            if not path.exists():
                raise
            finished.unlink(missing_ok=True)
        if durable:
            _flush_folder(path.parent)


def move(path: Path, target: Path) -> None:
    """Rename a file, if it is there."""
    with explained(path), suppress(FileNotFoundError):
        os.replace(path, target)


def remove(path: Path) -> None:
    """Delete a file, if it is there."""
    with explained(path):
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Delete a folder of temporary files, whatever its state."""
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder."""
    try:
        with os.scandir(folder) as entries:
            ours = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
        for path in ours:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
    except OSError:  # the folder is not there yet, or another process sweeps too
        return


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Delete a temporary file when something goes wrong, be it Ctrl-C."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    with path.open("rb+") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and NTFS journals the rename
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
