"""From the text file beside a picture to the tags that are trained: pure functions of text.

A caption is a list of tags separated by commas, on the first line of its file, as kohya-ss/sd-scripts reads it.
Tags have one normal form, so that `long_hair`, `long hair` and ` Long hair` are the same tag to every rule.
What a recipe may allow in captions beyond that, lines, choices and marks, is in `lorac.wildcards`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from lorac.rng import Stream

# Tags whose underscore is part of a face; the list of the WD14 tagger extension.
_FACES = "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"
KAOMOJI = frozenset(_FACES.split())


@lru_cache(maxsize=1 << 16)
def _forms(tag: str) -> tuple[str, str]:
    """The normal form of a tag, and what it has in common with the tags that rules take for the same."""
    tag = tag.strip()
    if tag not in KAOMOJI:
        tag = " ".join(tag.replace("_", " ").split())
    return tag, tag.casefold()


def normal(tag: str) -> str:
    """The tag as it is trained: no space around it, `_` as a space unless the tag is a face."""
    return _forms(tag)[0]


def split_tags(text: str) -> list[str]:
    """The tags of a text in normal form; empty ones are dropped."""
    return [tag for tag, _ in map(_forms, text.split(",")) if tag]


def decode_caption(data: bytes, lines: bool = False) -> str:
    """The caption in a file's bytes: its first line, stripped; or all that have tags, if the recipe allows `lines`.

    Raises ValueError whose text is cause and remedy, for the caller to put the file's name before it.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ValueError("is UTF-16; save it as UTF-8")
    if data.startswith(codecs.BOM_UTF8):
        raise ValueError("begins with a byte order mark (BOM); save it as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"is not UTF-8{_guess(data)}; save it as UTF-8") from None
    if not text.strip():
        raise ValueError("is empty; write its tags, or delete the file")
    found = [line.strip() for line in text.splitlines()]
    if lines and any(map(split_tags, found)):
        return "\n".join(filter(split_tags, found))
    if not split_tags(found[0]):
        raise ValueError("has no tags on its first line; write some, or delete the file")
    return found[0]


def _guess(data: bytes) -> str:
    """The Japanese encoding that a file written by an older Windows program probably has."""
    text = data.decode("cp932", errors="replace")
    japanese = any("\u3040" <= char <= "\u9fff" for char in text)  # kana and kanji
    return " but probably Shift-JIS (cp932)" if japanese and "\ufffd" not in text else ""


@dataclass(frozen=True)
class Rules:
    """What happens to every caption of a picture set. Without arguments: nothing but normal form and no tag twice.

    `separator` is the mark around the tags that may move, "" for none; `wildcard` allows lines and {choices}.
    """

    trigger: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    suffix: str = ""
    separator: str = ""
    wildcard: bool = False

    @cached_property
    def head(self) -> dict[str, str]:
        """The tags before the caption's own, triggers and then the prefix, by what makes tags the same."""
        head: dict[str, str] = {}
        for tag in split_tags(",".join((*self.trigger, self.prefix))):
            head.setdefault(_forms(tag)[1], tag)
        return head

    @cached_property
    def renamed(self) -> dict[str, list[str]]:
        """What becomes of a tag that a rule names: nothing for an excluded one, which wins over `replace`."""
        table = {_forms(old)[1]: split_tags(new) for old, new in self.replace}
        return table | {_forms(tag)[1]: [] for tag in self.exclude}


def apply(rules: Rules, raw: str) -> tuple[str, ...]:
    """The final tags of a caption: triggers, prefix, the caption's tags excluded and replaced, suffix; no tag twice.

    Triggers, prefix and suffix are what the recipe adds, so `exclude` and `replace` do not touch them.
    """
    tags = dict(rules.head)
    for tag, same in map(_forms, raw.split(",")):
        if same not in rules.renamed:
            tags.setdefault(same, tag)
            continue
        for new in rules.renamed[same]:
            tags.setdefault(_forms(new)[1], new)
    for tag, same in map(_forms, rules.suffix.split(",")):
        tags.setdefault(same, tag)
    return tuple(tag for tag in tags.values() if tag)


def ruled(rules: Rules, raw: str) -> list[str]:
    """The tags of a part of a caption, excluded and replaced, and nothing else."""
    return [tag for own in split_tags(raw) for tag in rules.renamed.get(own.casefold(), [own])]


def unmatched(rules: Rules, raw_captions: Iterable[str]) -> tuple[str, ...]:
    """The `exclude` and `replace` rules that met no tag in any caption, as written; most are typing errors."""
    met = {_forms(tag)[1] for raw in raw_captions for tag in raw.split(",")}
    named = (*rules.exclude, *(old for old, _ in rules.replace))
    return tuple(rule for rule in named if _forms(rule)[1] not in met)


def is_dropped(stream: Stream, epoch: int, rate: float, every_n_epochs: int) -> bool:
    """Whether a picture is shown with an empty caption in `epoch` (from 1), as kohya decides it."""
    return (rate > 0 and stream.uniform() < rate) or (every_n_epochs > 0 and epoch % every_n_epochs == 0)


def variant(
    tags: Sequence[object],
    stream: Stream,
    *,
    shuffle: bool = False,
    keep_tokens: int = 0,
    keep_end: int = 0,
    tag_dropout: float = 0.0,
    caption_dropped: bool = False,
) -> list[int]:
    """One showing of a caption: indices into `tags`, in the order in which they are joined.

    kohya's order of operations: a dropped caption is empty; the first `keep_tokens` tags and the last `keep_end` stay;
    the others are shuffled, then each is left out with probability `tag_dropout`.
    """
    if caption_dropped:
        return []
    fixed = list(range(min(keep_tokens, len(tags))))
    end = max(len(fixed), len(tags) - keep_end)
    others = list(range(len(fixed), end))
    if shuffle:
        stream.shuffle(others)
    if tag_dropout > 0:
        others = [index for index in others if stream.uniform() >= tag_dropout]
    return [*fixed, *others, *range(end, len(tags))]


def joined(tags: Iterable[str]) -> str:
    """The text that is tokenised."""
    return ", ".join(tags)
