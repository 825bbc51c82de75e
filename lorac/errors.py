"""Every error a user can meet.

    LoracError                  exit code 1
    ├── InputError              exit code 2: what the user gave is wrong; lists every problem at once
    ├── StoreError              exit code 2: the store cannot be written or read (full disk, no permission)
    ├── TrainingDiverged        exit code 1: the loss is no longer a number
    └── Interrupted             exit code 130: Ctrl-C; what was done is kept

A message says the cause, the place and the remedy, in that spirit if not in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `where` is `path:line` or a path; `remedy` is what to do, and may be empty."""

    where: str
    cause: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.cause}" if self.where else self.cause
        return f"{text}; {self.remedy}" if self.remedy else text


class LoracError(Exception):
    """Base of all errors that are shown to the user as text, without a traceback."""

    exit_code = 1

    def bare(self) -> Self:
        """Itself without tracebacks, whose frames hold what was worked with, to be kept while other work goes on."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class InputError(LoracError):
    """Recipes, pictures, captions or checkpoints that cannot be used."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, where: object, cause: str, remedy: str = "") -> InputError:
        """With one problem."""
        return cls([Problem(str(where), cause, remedy)])


class StoreError(LoracError):
    """The store or the output folder cannot be written or read."""

    exit_code = 2


class TrainingDiverged(LoracError):
    """The loss or a gradient is not finite any more."""


class Interrupted(LoracError):
    """The user pressed Ctrl-C."""

    exit_code = 130
