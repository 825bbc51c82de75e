"""What a rule is: a function that finds, and a docstring that explains. The docstring has a fixed form:

L016 rank-one: the network has rank 1

Why: one or more lines.

Before:
    [network]
    dim = 1

After:
    [network]
    dim = 16

Remedy: one or more lines.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lorac.check.material import Material

Found = Iterator[tuple[str, str]]
"""(place, text) of each finding: `recipes/x.toml:12` or a file, and what is wrong there with its remedy."""
Finder = Callable[[Material], Found]

_FORM = re.compile(
    r"(?P<code>L\d{3}) (?P<name>[a-z0-9]+(?:-[a-z0-9]+)*): (?P<summary>[^\n]+)\n\n"
    r"Why: (?P<why>.+?)\n\n"
    r"Before:\n(?P<before>.+?)\n\n"
    r"After:\n(?P<after>.+?)\n\n"
    r"Remedy: (?P<remedy>.+)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Rule:
    """`before` and `after` are lines of a recipe, a caption or file names; the other texts are sentences."""

    code: str
    name: str
    summary: str
    why: str
    before: str
    after: str
    remedy: str
    find: Finder


def rule(find: Finder) -> Rule:
    """The rule of a function. Raises ValueError for a docstring of another form."""
    match = _FORM.fullmatch(inspect.getdoc(find) or "")
    if match is None:
        raise ValueError(f"the docstring of {find.__name__} has not the form of a rule's")
    parts = match.groupdict()
    texts = {part: " ".join(parts[part].split()) for part in ("summary", "why", "remedy")}
    examples = {part: inspect.cleandoc(f"\n{parts[part]}") for part in ("before", "after")}
    return Rule(parts["code"], parts["name"], **texts, **examples, find=find)
