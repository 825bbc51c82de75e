"""Write a new recipe, and never over one that is there."""

from __future__ import annotations

from pathlib import Path

import click

from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.migrate.draft import Draft, render


def write(draft: Draft, output: Path | None, force: bool) -> None:
    """Print the recipe or write it to `output`, and say on standard error what the user has to know.

    Raises InputError if the file is there already or cannot be written.
    """
    try:
        text = render(draft).encode()
    except UnicodeEncodeError:
        cause = "a path is not Unicode"
        raise InputError([Problem("", cause, "rename the folder; a recipe is UTF-8")]) from None
    if output is None:
        click.echo(text.decode(), nl=False)
    else:
        try:
            with output.open("wb" if force else "xb") as file:
                file.write(text)
        except FileExistsError:
            raise InputError([Problem(shown_path(output), "is there already", "give --force to replace it")]) from None
        except OSError as error:
            cause = f"cannot be written: {error.strerror}"
            raise InputError([Problem(shown_path(output), cause, "give another file to -o")]) from None
        click.echo(f"wrote {shown_path(output)}", err=True)
    for warning in dict.fromkeys(draft.warnings):
        click.echo(f"lorac: {warning}", err=True)
