"""A recipe before validation: TOML values and, for each, the place where it was written.

`extends`, `--base`, `--set` and the matrix all become the same thing: a value assigned at a key path, with the place
that messages name and the folder that relative paths start from.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorac.recipe.positions import KeyPath, dotted
from lorac.recipe.schema import EXCLUSIVE


@dataclass(frozen=True)
class Place:
    """Where a value was written. `label` is a file as shown to the user or a command-line option."""

    label: str
    line: int | None
    folder: Path

    def __str__(self) -> str:
        return self.label if self.line is None else f"{self.label}:{self.line}"


@dataclass(frozen=True)
class Finding:
    """A problem at a key, whose place is looked up later; `meant` is the key that an unknown one stands for."""

    path: KeyPath
    cause: str
    remedy: str = ""
    meant: KeyPath | None = None


@dataclass
class Tree:
    """TOML values with their places. `root` is the place of the whole file."""

    root: Place
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(self.root, copy.deepcopy(self.data), dict(self.places))

    def place(self, path: KeyPath) -> Place:
        """The place of `path`, or of the first key in it for a table that no line opens, or of the table around it."""
        if path and path not in self.places:
            inside = next((at for at in self.places if at[: len(path)] == path), path)
            path = inside if inside in self.places else path
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return self.root

    def remove(self, path: KeyPath) -> None:
        """Take away the value at a path of plain keys, if there is one."""
        table: Any = self.data
        for part in path[:-1]:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict) and path[-1] in table:
            del table[path[-1]]
            self._forget(path)

    def assign(self, path: KeyPath, value: object, place: Place) -> Finding | None:
        """Put `value` at `path`, making tables on the way; a finding when the path leads through something else."""
        holder: Any = self.data
        for depth, part in enumerate(path):
            if isinstance(part, int) and not (isinstance(holder, list) and part < len(holder)):
                return Finding(path, f"{dotted(path[:depth])} has no element [{part}]", "elements count from 0")
            if isinstance(part, str) and not isinstance(holder, dict):
                return Finding(path, f"{dotted(path[:depth])} is not a table", f'it cannot have a key "{part}"')
            if depth < len(path) - 1:
                holder = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]
        if path in EXCLUSIVE:
            self.remove(EXCLUSIVE[path])
        holder[path[-1]] = copy.deepcopy(value)
        self._forget(path)
        self.places[path] = place
        return None

    def overlay(self, above: Tree) -> None:
        """Put the values of `above` over these: tables key by key, everything else whole."""
        self._overlay(above, above.data, ())
        self.root = above.root

    def _overlay(self, above: Tree, table: dict[str, Any], path: KeyPath) -> None:
        for key, value in table.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(self._get(here), dict):
                self.places[here] = above.place(here)
                self._overlay(above, value, here)
            else:
                self.assign(here, value, above.place(here))
                self.places |= {at: place for at, place in above.places.items() if at[: len(here)] == here}

    def _get(self, path: KeyPath) -> object:
        value: Any = self.data
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _forget(self, path: KeyPath) -> None:
        for at in [at for at in self.places if at[: len(path)] == path]:
            del self.places[at]
