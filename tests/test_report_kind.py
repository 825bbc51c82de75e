"""What kind `report` takes from captions: tags as they are trained, and what the rules left out of them."""

from __future__ import annotations

from typing import Any

from lorac.captions import Rules
from lorac.kinds.report import left_out
from lorac.report.page import LeftOut
from lorac.wildcards import final
from tests.one_item import of_blobs


def found(rules: Rules, texts: list[str], regularisation: str = "1girl, hat") -> list[LeftOut]:
    """What is said of a source with these texts, and of a regularisation folder from which nothing counts."""
    blobs = {b"reg": regularisation.encode(), b"none": b"none"}
    for number, text in enumerate(texts):
        blobs |= {b"raw %d" % number: text.encode(), b"final %d" % number: final(rules, text).encode()}
    caption: dict[str, Any] = {
        "keep_tokens_separator": rules.separator,
        "enable_wildcard": rules.wildcard,
        "replace": dict(rules.replace),
    }
    work = of_blobs(
        blobs,
        params={
            "settings": {"caption": caption},
            "folders": [{"regularisation": False}, {"regularisation": True}],
        },
        columns={
            "raw.0": [b"raw %d" % number for number in range(len(texts))],
            "caption.0": [b"final %d" % number for number in range(len(texts))],
            "raw.1": [b"reg"],
            "caption.1": [b"none"],
        },
    )
    return list(left_out(work))


def test_excluded_and_replaced_tags_are_counted_by_pictures() -> None:
    rules = Rules(trigger=("izumi riho",), exclude=("1girl", "Solo"), replace=(("riho_cloth", "rihocloth"),))
    texts = ["1girl, solo, smile, riho cloth", "1girl, 1girl, smile", "smile"]
    assert found(rules, texts) == [LeftOut("1girl", 2), LeftOut("riho cloth", 1, "rihocloth"), LeftOut("solo", 1)]


def test_a_tag_that_comes_back_as_a_trigger_is_not_left_out() -> None:
    assert found(Rules(trigger=("smile",), exclude=("smile", "hat")), ["Smile, hat"]) == [LeftOut("hat", 1)]


def test_choices_lines_and_marks_are_no_tags() -> None:
    rules = Rules(exclude=("red hair", "1girl"), separator="|||", wildcard=True)
    assert found(rules, ["1girl ||| {red|blue} hair, smile\n1girl, hat"]) == [
        LeftOut("1girl", 1),
        LeftOut("red hair", 1),
    ]


def test_without_rules_nothing_is_left_out() -> None:
    assert found(Rules(), ["a, b", "long_hair"]) == []
