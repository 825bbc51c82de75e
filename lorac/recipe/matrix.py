"""`[matrix]`: one recipe for each combination of the listed values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import PurePath
from typing import Any

from lorac.errors import Problem
from lorac.recipe.places import Place, Tree
from lorac.recipe.positions import KeyPath, dotted, parse_dotted

# A sweep of more is a typing error; each point is a training of its own.
MAX_POINTS = 1000
_SHORT = {"learning_rate": "lr", "text_encoder_lr": "te_lr", "lr_scheduler": "scheduler", "lr_warmup_steps": "warmup"}


@dataclass(frozen=True)
class Axis:
    """One key of the matrix with its values and the place of each."""

    path: KeyPath
    values: Sequence[Any]
    places: Sequence[Place]
    labels: Sequence[str]


Point = tuple[tuple[str, Any], ...]


def expand(tree: Tree, fixed: set[KeyPath], problems: list[Problem]) -> list[tuple[str, Point, Tree]]:
    """The recipes of a tree: for each its name's suffix, its point in the matrix and its values.

    `fixed` are the keys given on the command line: they win over the matrix, which loses that axis.
    """
    matrix = tree.data.pop("matrix", {})
    axes: list[Axis] = []
    if isinstance(matrix, dict):
        _collect(tree, matrix, ("matrix",), (), axes, problems)
    else:
        problems.append(Problem(str(tree.place(("matrix",))), "matrix is not a table", "write [matrix]"))
    axes = [axis for axis in axes if axis.path not in fixed]
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_POINTS:
        cause = f"the matrix has {count} points, more than {MAX_POINTS}"
        problems.append(Problem(str(tree.place(("matrix",))), cause, "list fewer values"))
        return []
    recipes = []
    for indices in product(*(range(len(axis.values)) for axis in axes)):
        point = tree.copy()
        suffix = ""
        for axis, i in zip(axes, indices, strict=True):
            finding = point.assign(axis.path, axis.values[i], axis.places[i])
            if finding is not None:
                problems.append(Problem(str(axis.places[i]), finding.cause, finding.remedy))
            suffix += f"-{axis.labels[i]}"
        values = tuple((dotted(axis.path), axis.values[i]) for axis, i in zip(axes, indices, strict=True))
        recipes.append((suffix, values, point))
    return recipes


def _collect(
    tree: Tree, table: dict[str, Any], at: KeyPath, prefix: KeyPath, axes: list[Axis], problems: list[Problem]
) -> None:
    """Gather the axes below `table`, which stands at `at` in the file and means keys below `prefix`."""
    for key, value in table.items():
        here = (*at, key)
        where = str(tree.place(here))
        try:
            path = (*prefix, *parse_dotted(key))
        except ValueError:
            problems.append(Problem(where, f'"{key}" in [matrix] is no key', 'write it as "network.alpha" = [1, 128]'))
            continue
        if isinstance(value, dict):
            _collect(tree, value, here, path, axes, problems)
        elif isinstance(value, list) and value:
            places = [tree.place((*here, i)) for i in range(len(value))]
            axes.append(Axis(path, value, places, _labels(path, value)))
        else:
            remedy = f"write {dotted((key,))} = [first, second]"
            problems.append(Problem(where, f"{dotted(path)} in [matrix] is not a list of values", remedy))


def _labels(path: KeyPath, values: Sequence[Any]) -> list[str]:
    """What each value of an axis adds to the recipe's name: `alpha1`, `lr1e-4`; numbered where values are no words."""
    last = next(str(part) for part in reversed(path) if isinstance(part, str))
    word = _SHORT.get(last, last)
    texts = [_value_text(value) for value in values]
    if len({text.casefold() for text in texts}) < len(texts) or not all(0 < len(text) <= 24 for text in texts):
        texts = [f"_{i}" for i in range(1, len(values) + 1)]
    return [f"{word}{text}" for text in texts]


def _value_text(value: object) -> str:
    match value:
        case bool():
            return "_on" if value else "_off"
        case int():
            return str(value)
        case float():
            return _number_text(value)
        case str():
            word = PurePath(value).stem if "/" in value or "\\" in value else value
            return "_" + re.sub(r"[^\w.+-]+", "_", word).strip("._")
        case list() if value and all(isinstance(item, str | int | float) for item in value):
            return "_" + "+".join(_value_text(item).lstrip("_") for item in value)
    return ""


def _number_text(value: float) -> str:
    """`0.0001` as `1e-4`, `0.5` as `0.5`, `128.0` as `128`."""
    if value != value or abs(value) in (0.0, float("inf")):
        return str(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    scale = exponent + len(digits) - 1
    if -3 < scale < 7:
        return f"{value:g}" if value == float(f"{value:g}") else repr(value)
    fraction = "".join(map(str, digits[1:]))
    return f"{'-' if sign else ''}{digits[0]}{'.' + fraction if fraction else ''}e{scale}"
