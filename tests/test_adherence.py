"""The measure of prompt adherence: what it counts, and that a picture depends on its prompt and number alone."""

from __future__ import annotations

import numpy as np

from lorac.mini.adherence import GROUPS, Base, Figure, figures, group_of, precision, recalled, table
from lorac.mini.attributes import OUTFITS
from lorac.mini.world import vocabulary


def test_every_tag_of_the_world_is_in_one_group() -> None:
    words = set(vocabulary())
    for name, tags in GROUPS:
        assert tags <= words, name
        assert all(group_of(tag) == name for tag in tags)
    assert sum(len(tags) for _, tags in GROUPS) == len(set.union(*(set(tags) for _, tags in GROUPS)))
    left = {tag for tag in words if group_of(tag) == "outfit"}
    assert set(OUTFITS) - {"hoodie"} <= left
    assert not any(tag.split()[0] in ("red", "blue", "green", "long", "white") for tag in left - {"long sleeves"})
    assert "ocean" not in left


def figure(wanted: str, *seen: str) -> Figure:
    return Figure(frozenset(wanted.split()), tuple(frozenset(row.split()) for row in seen))


def test_recall_and_precision_are_shares_of_tags() -> None:
    found = [figure("a b c", "a b x", "a b c", ""), figure("a c", "c b", "a c", "a c y")]
    assert recalled(found, "abc") == recalled(found, ["a", "b", "c", "z"])
    assert recalled(found, "abc").asked == 5
    assert recalled(found, "abc").seen == (3 / 5, 1.0, 2 / 5)
    assert recalled(found, "a").seen == (1 / 2, 1.0, 1 / 2)
    assert [precision(found, row) for row in range(3)] == [3 / 5, 1.0, 2 / 3]


def test_the_table_has_a_row_for_each_group_and_names_the_worst_tags() -> None:
    rows = table([figure("1girl ocean dress", "1girl", "1girl ocean dress", "dress")] * 5).splitlines()
    assert "| all tags | 15 | 33.3% | 100.0% | 33.3% |" in rows
    assert "| people | 5 | 100.0% | 100.0% | 0.0% |" in rows
    assert "| place | 5 | 0.0% | 100.0% | 0.0% |" in rows
    assert "| outfit | 5 | 0.0% | 100.0% | 100.0% |" in rows
    assert "- dress: 0.0%, 100.0%, 100.0% (5)" in rows


def test_a_picture_depends_on_its_prompt_and_number_alone() -> None:
    base = Base(steps=2)
    both = base.samples(["1girl, kimono", "1girl, kimono"], [4, 5])
    assert both[0] != both[1]
    (again,) = base.samples(["1girl, kimono"], [5])
    assert np.abs(np.asarray(again, np.int16) - np.asarray(both[1], np.int16)).max() <= 1
    assert figures(base, range(4, 6))[1:] == figures(base, range(5, 6))


def test_drawings_are_seen_as_they_are_and_samples_nearly() -> None:
    (found,) = figures(Base(), range(4, 5))
    assert found.wanted == found.seen[1]
    assert recalled([found], found.wanted).seen[0] > 0.75
