"""Tags by what they are signs of: measures and `lorac check` ask the same lists."""

from __future__ import annotations

import pytest

from lorac import words


@pytest.mark.parametrize(
    ("tag", "head", "body", "clothes"),
    [
        ("orange hair", True, False, False),
        ("hair over shoulder", True, False, False),
        ("smile", True, False, False),
        ("1girl", False, False, False),
        ("maid headdress", False, False, False),
        ("plaid skirt", False, True, True),
        ("cheongsam", False, True, True),
        ("bare shoulders", False, True, False),
        ("sitting", False, True, False),
        ("cowboy shot", False, True, False),
        ("portrait", True, False, False),
        ("outdoors", False, False, False),
    ],
)
def test_signs_of_heads_and_bodies(tag: str, head: bool, body: bool, clothes: bool) -> None:
    assert words.shows_head([tag.title()]) == head
    assert words.shows_body([tag.title()]) == body
    assert bool(words.clothes([tag.title()])) == clothes


def test_a_portrait_is_not_severed_and_shows_no_body() -> None:
    """It has shoulders, so a measure takes it for whole; a source of portraits teaches no body all the same."""
    assert words.is_body("portrait")
    assert words.is_close(["Portrait"])
    assert not words.shows_body(["portrait"])


@pytest.mark.parametrize("tag", ["standing", "arms up", "upper body", "white background", "outdoors", "closed eyes"])
def test_what_changes_from_picture_to_picture(tag: str) -> None:
    assert words.changes(tag)


@pytest.mark.parametrize("tag", ["orange hair", "kimono", "mole under eye", "dark skin", "star hair ornament"])
def test_what_stays(tag: str) -> None:
    assert not words.changes(tag)
