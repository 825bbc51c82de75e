"""Rules in words: in the terminal, and as the page `recipes/RULES.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches

from lorac.check.registry import RULES
from lorac.check.rule import Rule
from lorac.errors import InputError

ALL = "all"
HEAD = """# The rules of `lorac check`

Made by `lorac check --list --format markdown`. `lorac check RECIPE` reads a recipe, its captions and its pictures, and
names what probably harms the LoRA; it builds nothing. `lorac check --explain L014` prints one rule. A recipe in which a
finding is wanted says so, and the rule is silent:

```toml
[check]
ignore = ["L020"]
```

| code | name | finds |
| --- | --- | --- |
"""


def nearest_code(text: str) -> str | None:
    """The code that was probably meant: by the code, or by the name of a rule. A number of no rule is near to none."""
    names = {made.name: made.code for made in RULES.values()} | {code: code for code in RULES}
    wanted = text.strip()
    digits = wanted.lstrip("Ll")
    if digits.isdecimal() and len(digits) <= 3:
        code = f"L{int(digits):03}"
        return code if code in names else None
    meant = get_close_matches(wanted, names, n=1, cutoff=0.6) or get_close_matches(wanted.upper(), names, n=1)
    return names[meant[0]] if meant else None


def explained(code: str) -> str:
    """A rule by its code or name, or all of them, for the terminal. Raises InputError if there is none."""
    if code.casefold() == ALL:
        return "\n\n".join(map(_text, RULES.values()))
    by_name = {made.name: made for made in RULES.values()}
    made = RULES.get(code.upper()) or by_name.get(code.casefold())
    if made is None:
        meant = nearest_code(code)
        remedy = f"did you mean {meant} ({RULES[meant].name})?" if meant else "see lorac check --list"
        raise InputError.of("--explain", f'there is no rule "{code}"', remedy)
    return _text(made)


def listing() -> str:
    """A rule a line."""
    widest = max(len(made.name) for made in RULES.values())
    return "\n".join(f"{made.code}  {made.name:<{widest}}  {made.summary}" for made in RULES.values())


def as_json() -> str:
    """All rules for programs."""
    names = ("code", "name", "summary", "why", "before", "after", "remedy")
    told = [{name: getattr(made, name) for name in names} for made in RULES.values()]
    return json.dumps(told, indent=2, ensure_ascii=False)


def _text(made: Rule) -> str:
    return "\n".join(
        [
            f"{made.code} {made.name}: {made.summary}",
            "",
            f"Why is this bad?  {made.why}",
            "",
            "Before:",
            *_indented(made.before),
            "After:",
            *_indented(made.after),
            "",
            f"Remedy: {made.remedy}",
        ]
    )


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"    {line}" if line else ""


def markdown() -> str:
    """The whole page."""
    rows = (f"| [{made.code}](#{anchor(made)}) | {made.name} | {made.summary} |" for made in RULES.values())
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(map(_part, RULES.values()))


def anchor(made: Rule) -> str:
    """The name that GitHub gives to the rule's heading."""
    return f"{made.code.lower()}-{made.name}"


def _part(made: Rule) -> str:
    parts = [f"## {made.code} {made.name}", made.summary[0].upper() + made.summary[1:] + "."]
    parts.append(f"**Why is this bad?** {made.why}")
    parts += ["**Before**", f"```text\n{made.before}\n```", "**After**", f"```text\n{made.after}\n```"]
    parts.append(f"**Remedy** {made.remedy}")
    return "\n\n".join(parts) + "\n"
