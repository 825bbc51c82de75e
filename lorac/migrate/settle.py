"""The last look at a draft: what lorac would refuse is taken out of it, so that the recipe can be planned."""

from __future__ import annotations

from typing import Any

from lorac.errors import InputError
from lorac.listing import exists
from lorac.migrate.draft import Draft, Entry, toml
from lorac.recipe.base import BaseFacts, base_facts, base_path
from lorac.recipe.diagnostics import fields
from lorac.recipe.fields import BUILTIN_BASE
from lorac.recipe.places import Finding, Place, Tree
from lorac.recipe.positions import KeyPath
from lorac.recipe.presets import underlay
from lorac.recipe.rules import check
from lorac.recipe.rules_train import contradictions
from lorac.recipe.schema import SECTIONS, Document
from lorac.recipe.validate import read_document

QUIET = (0, 1, ".txt", "fp16")
"""Values that are not worth a line where they are the default."""
RATES = ("learning_rate", "unet_lr", "text_encoder_lr")


def settle(draft: Draft) -> None:
    """Move what lorac would refuse to the leftovers, and write what it needs, so that the recipe is a valid one."""
    facts, written = _facts(draft), set[KeyPath]()
    while any(_resolve(draft, finding, written) for finding in _findings(draft, facts)):
        pass  # one at a time: a change can be the end of other findings, too
    _hush(draft)


def _findings(draft: Draft, facts: BaseFacts) -> list[Finding]:
    """What a plan would refuse of the keys; missing files and a missing length are others' to say."""
    document, findings = _read(draft, draft.data())
    wrong = {finding.meant or finding.path for finding in findings}
    findings += check(document, wrong)
    if not any(path[:1] == ("loss",) for path in wrong):
        findings += contradictions(document.loss, **facts.prediction(document.loss))
    return [finding for finding in findings if len(finding.path) > 1]


def _read(draft: Draft, data: dict[str, Any]) -> tuple[Document, list[Finding]]:
    tree = Tree(Place("", None, draft.folder), data)
    underlay(tree)
    return read_document(tree.data)


def _facts(draft: Draft) -> BaseFacts:
    """Those of the base; of a plain SD 1.x if it is not here, or none."""
    base = draft.get("train", "base") or BUILTIN_BASE
    if base != BUILTIN_BASE:
        base = "" if "\0" in base else str(draft.folder / base)
    try:
        return base_facts(base, "") if base and exists(base_path(base)) else BaseFacts(draft.folder)
    except InputError:
        return BaseFacts(draft.folder)


def _resolve(draft: Draft, finding: Finding, written: set[KeyPath]) -> bool:
    """Change the draft so that the finding is gone; whether that could be. `written` are keys that got a value here."""
    tables = {"source": draft.sources, "regularisation": draft.regularisation}.get(str(finding.path[0]))
    if tables is not None:
        number, *rest = finding.path[1:]
        return bool(rest) and _take_out(draft, tables[int(number)], finding, 2)
    section, key = str(finding.path[0]), str(finding.path[1])
    prodigys = section == "train" and key in RATES and draft.get("train", "optimizer") == "prodigy"
    if prodigys and ("train", RATES[0]) not in written:
        written.add(("train", RATES[0]))
        _one_rate(draft)
        return True
    return _take_out(draft, draft.sections.get(section, {}), finding, 1) or _write(draft, finding, written)


def _take_out(draft: Draft, table: dict[str, Entry], finding: Finding, depth: int) -> bool:
    """Move the value that is blamed to the leftovers; of a table of settings only the one."""
    key, name = str(finding.path[depth]), ".".join(map(str, finding.path))
    if key not in table:
        return False
    value = table[key].value
    if isinstance(value, dict) and finding.path[-1] in value:
        rest = {name: item for name, item in value.items() if name != finding.path[-1]}
        value, table[key] = value[finding.path[-1]], Entry(rest, table[key].comment)
        if not rest:
            del table[key]
    else:
        del table[key]
        name = ".".join(map(str, finding.path[: depth + 1]))
    draft.leave(name, value, f"{finding.cause}; {finding.remedy}".strip("; "))
    return True


def _one_rate(draft: Draft) -> None:
    """Prodigy's rate is 1, for both parts or for the one that is trained."""
    train = draft.sections.setdefault("train", {})
    told = ", ".join(f"{name} = {toml(train[name].value)}" for name in RATES if name in train)
    whole = train.pop("learning_rate", Entry(None))
    for name in RATES[1:]:
        own = train.pop(name, whole)
        if own.value == 0:
            draft.put("train", name, own.value, own.comment or "kohya: not trained")
    comment = "prodigy finds one rate for all and multiplies it by this"
    draft.put("train", "learning_rate", 1, f"kohya: {told}; {comment}" if told else comment)


def _write(draft: Draft, finding: Finding, written: set[KeyPath]) -> bool:
    """Write lorac's default for a key that the draft has not: the preset's or the base's is what does not go."""
    section, key = str(finding.path[0]), str(finding.path[1])
    if (section, key) in written or section not in SECTIONS or key not in fields(SECTIONS[section]):
        return False
    default = getattr(getattr(Document(), section), key)
    if (section, key) == ("loss", "zero_terminal_snr"):
        default = False
    if default is None:
        return False
    written.add((section, key))
    draft.put(section, key, default, finding.cause)
    return True


def _hush(draft: Draft) -> None:
    """Take out plain defaults that nobody said anything about."""
    defaults, _ = _read(draft, {} if draft.preset is None else {"preset": draft.preset.value})
    for section, entries in draft.sections.items():
        for key, entry in list(entries.items()):
            plain = isinstance(entry.value, bool) or entry.value in QUIET
            if plain and not entry.comment and entry.value == getattr(getattr(defaults, section), key):
                del entries[key]
