"""What a comparison knows of each recipe, and the ground on which it compares them: equal prompts, one strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote

from lorac.evaluate.figures import Figures, HeldOut, Measure
from lorac.evaluate.intervals import average
from lorac.report.markup import text

FULL = 1.0
"""The strength at which recipes are compared if all of them were measured at it."""
Pair: TypeAlias = tuple[str, str]
"""A prompt and its negative prompt."""


@dataclass(frozen=True)
class Shown:
    """The pictures of one prompt: without the LoRA, and at each of some strengths."""

    prompt: str
    negative: str
    off: bytes
    at: Mapping[float, bytes]


@dataclass(frozen=True)
class Column:
    """One recipe. `settings`: by dotted name. What it has not is empty or None."""

    name: str
    comment: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[Shown] = ()
    losses: Sequence[float] = ()
    figures: Figures | None = None

    @property
    def link(self) -> str:
        """An <a> to the recipe's own report."""
        return f'<a href="../{quote(self.name)}/report.html">{text(self.name)}</a>'

    @property
    def preferred(self) -> float | None:
        """The strength that suits it best."""
        return self.figures.preferred_weight if self.figures else None

    @property
    def held_out(self) -> HeldOut | None:
        """Its loss over pictures that were not trained, if it has such."""
        return self.figures.held_out if self.figures else None

    @property
    def strengths(self) -> list[float]:
        """Those at which it was measured with the LoRA."""
        return [strength for strength in (self.figures.strengths if self.figures else ()) if strength]

    @property
    def pairs(self) -> list[Pair]:
        """The prompts with which it was measured."""
        return [(one.prompt, one.negative) for one in (self.figures.prompts if self.figures else ())]

    def overall(self, strength: float) -> Mapping[str, Measure | None]:
        """The figures of all its prompts at a strength; none where it was not measured."""
        found = (one.measures for one in (self.figures.overall if self.figures else ()) if one.strength == strength)
        return next(found, {})

    def measures(self, pair: Pair, strength: float) -> Mapping[str, Measure | None]:
        """The figures of one prompt at a strength; none where it was not measured."""
        if self.figures is None or pair not in self.pairs:
            return {}
        number = self.pairs.index(pair)
        cells = (cell for cell in self.figures.cells if cell.prompt == number and cell.strength == strength)
        return next((cell.measures for cell in cells), {})


@dataclass(frozen=True)
class Ground:
    """On what recipes are compared.

    columns: those that were measured with their LoRA. prompts: which all of these share. strength: FULL, or the largest
    that they share; None if they share none, and each is shown at the largest of its own.
    """

    columns: Sequence[Column]
    prompts: Sequence[Pair]
    strength: float | None

    def at(self, column: Column) -> float:
        """The strength at which one of `columns` is shown."""
        return max(column.strengths) if self.strength is None else self.strength

    def prompts_of(self, name: str) -> list[Pair]:
        """The shared prompts for which a measure has a meaning in every recipe that has it at all.

        A prompt that asks for nothing has no recall, pictures that are all broken have no heads to be severed.
        """
        having = [c for c in self.columns if any(c.measures(pair, self.at(c)).get(name) for pair in self.prompts)]
        return [pair for pair in self.prompts if all(c.measures(pair, self.at(c)).get(name) for c in having)]

    def figure(self, name: str, column: Column, *, without: bool = False) -> Measure | None:
        """A measure of one of `columns`, or `without` its LoRA: the mean over `prompts_of`, each of which counts the
        same; of a recipe that shares no prompt, over all of its own."""
        strength = 0.0 if without else self.at(column)
        if not self.prompts:
            return column.overall(strength).get(name)
        found = [column.measures(pair, strength).get(name) for pair in self.prompts_of(name)]
        known = [one for one in found if one]
        if not known or len(known) < len(found):
            return None
        return average(known)


def ground(columns: Sequence[Column]) -> Ground:
    """The ground of some recipes, in the first one's order of prompts."""
    measured = [column for column in columns if column.strengths]
    if not measured:
        return Ground((), (), None)
    prompts = [pair for pair in dict.fromkeys(measured[0].pairs) if all(pair in other.pairs for other in measured)]
    strengths = set(measured[0].strengths).intersection(*(other.strengths for other in measured))
    return Ground(measured, prompts, FULL if FULL in strengths else max(strengths, default=None))
