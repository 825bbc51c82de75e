"""Running `lorac` inside the test's process, as a user would in a terminal."""

from __future__ import annotations

import hashlib
from pathlib import Path

from click.testing import CliRunner, Result

from lorac.cli import main


def lorac(*arguments: object) -> Result:
    """`lorac ARGUMENTS` in the working directory; an exception that is no message to the user fails the test."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(*arguments: object) -> list[str]:
    """The messages of a call that must end with exit code 2, without the program's name before them."""
    done = lorac(*arguments)
    assert done.exit_code == 2, done.output
    return [line.removeprefix("lorac: ") for line in done.stderr.splitlines() if line.startswith("lorac: ")]


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder with the SHA-256 of its bytes and the time of its last change."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
