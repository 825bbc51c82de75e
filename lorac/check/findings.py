"""`lorac check`: what the rules find in recipes, with what each recipe ignores left out.

The points of a matrix share nearly everything, so a finding is shown once; one that does not hold for all of a file's
recipes names those for which it does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorac.check.explain import nearest_code
from lorac.check.looks import Looks, Progress
from lorac.check.material import Material, counted
from lorac.check.registry import RULES
from lorac.dataset import folders
from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.recipe.recipe import Recipe

SHOWN = 6
"""How many recipes of a matrix a line names."""


@dataclass(frozen=True)
class Finding:
    """`where` is a line of the recipe or a file. `recipes` are the names of those it holds for.

    `general`: it holds for all recipes of its file, so that the line for a person needs no names.
    """

    code: str
    where: str
    text: str
    recipes: tuple[str, ...] = ()
    general: bool = False

    def __str__(self) -> str:
        names = [*self.recipes[:SHOWN], "…"] if len(self.recipes) > SHOWN else self.recipes
        only = "" if self.general else f" ({', '.join(names)})"
        return f"{self.where}: {self.code} {self.text}{only}"

    def facts(self) -> dict[str, Any]:
        """For programs."""
        file, colon, line = self.where.rpartition(":")
        at = (file, int(line)) if colon and line.isdecimal() else (self.where, None)
        return {
            "code": self.code,
            "name": RULES[self.code].name,
            "file": at[0],
            "line": at[1],
            "message": self.text,
            "recipes": list(self.recipes),
        }


def findings(recipes: Sequence[Recipe], progress: Progress | None = None) -> list[Finding]:
    """Everything the rules find. Raises InputError for captions that cannot be read and for unknown codes to ignore."""
    unknown = [problem for recipe in recipes for problem in _unknown_codes(recipe)]
    if unknown:
        raise InputError(list(dict.fromkeys(unknown)))
    seen = Looks(progress)
    holds: dict[Finding, list[Recipe]] = {}
    for recipe in recipes:
        for finding in dict.fromkeys(_of(recipe, seen)):
            holds.setdefault(finding, []).append(recipe)
    points = Counter(recipe.file for recipe in recipes)
    return [
        replace(finding, recipes=tuple(recipe.name for recipe in of), general=_is_general(finding, of, points))
        for finding, of in holds.items()
    ]


def _is_general(finding: Finding, of: Sequence[Recipe], points: Counter[Path]) -> bool:
    """Whether a finding needs no names: it holds for all points of a file, and its place says which file that is.

    A line of a recipe that others extend says that only where it holds for all of them.
    """
    files = Counter(recipe.file for recipe in of)
    if any(files[file] < points[file] for file in files):
        return False
    label = finding.where.rpartition(":")[0]
    inherited = label.endswith(".toml") and all(label != shown_path(file) for file in files)
    return not inherited or len(files) == len(points)


def _of(recipe: Recipe, seen: Looks) -> Iterator[Finding]:
    material = Material(recipe, [replace(folder, pictures=folder.files) for folder in folders(recipe)], seen)
    ignored = {code.upper() for code in recipe.check.ignore}
    for rule in RULES.values():
        if rule.code not in ignored:
            for where, text in rule.find(material):
                yield Finding(rule.code, where, text)


def _unknown_codes(recipe: Recipe) -> Iterator[Problem]:
    for number, code in enumerate(recipe.check.ignore):
        if code.upper() not in RULES:
            where = recipe.where(f"check.ignore[{number}]")
            meant = nearest_code(code)
            remedy = f'did you mean "{meant}"?' if meant else "see lorac check --list"
            yield Problem(where, f'there is no rule "{code}"', remedy)


def summary(found: Sequence[Finding]) -> str:
    """The last line."""
    if not found:
        return "no findings"
    codes = sorted({finding.code for finding in found})
    return f"{counted(len(found), 'finding')}; lorac check --explain {codes[0]} says more about {codes[0]}"
