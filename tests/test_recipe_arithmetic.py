"""kohya's counts: the article's numbers, and sd-scripts' own loop over regularisation pictures."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorac.recipe.arithmetic import (
    batches_per_epoch,
    epoch_count,
    held_out,
    nothing_held_out,
    regularisation_order,
    saved_epochs,
    total_steps,
    warmup_steps,
)


@pytest.mark.parametrize(
    ("pictures", "repeats", "steps", "warmup"),
    [(13, 36, 2808, 28), (32, 16, 3072, 30), (21, 25, 3150, 31), (57, 10, 3420, 34)],
)
def test_the_article(pictures: int, repeats: int, steps: int, warmup: int) -> None:
    """The popup multiplied by 6; kohya made it 3 epochs, each with as many regularisation samples."""
    samples = pictures * repeats
    assert samples * 6 == steps
    regularisation = regularisation_order([1] * 400, samples)
    assert len(regularisation) == samples
    batches = batches_per_epoch([samples + len(regularisation)], 1)
    assert batches == 2 * samples
    assert epoch_count(steps, batches) == 3
    assert total_steps(3, None, batches) == steps == total_steps(None, steps, batches)
    assert saved_epochs(steps, batches, 1) == [1, 2]
    assert warmup_steps(0.01, steps) == warmup


def test_400_pictures_against_468_samples() -> None:
    order = regularisation_order([1] * 400, 468)
    assert len(order) == 468
    assert Counter(order) == {i: 2 if i < 68 else 1 for i in range(400)}
    assert order == sorted(order)


def test_surplus_pictures_are_never_shown() -> None:
    assert regularisation_order([1] * 10, 4) == [0, 1, 2, 3]


def test_the_last_picture_brings_all_its_repeats() -> None:
    assert regularisation_order([3, 3, 3], 4) == [0, 0, 0, 1, 1, 1]


def test_no_regularisation() -> None:
    assert regularisation_order([], 468) == []


def kohya(repeats: list[int], n_train: int) -> list[int]:
    """`DreamBoothDataset.__init__` of sd-scripts 48d368fa, with pictures as numbers."""
    registered: dict[int, int] = {}
    num_repeats = list(repeats)
    n = 0
    first_loop = True
    while n < n_train:
        for info in range(len(repeats)):
            if first_loop:
                registered[info] = info
                n += num_repeats[info]
            else:
                num_repeats[info] += 1
                n += 1
            if n >= n_train:
                break
        first_loop = False
    return [info for info in registered for _ in range(num_repeats[info])]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 60))
def test_the_order_is_kohyas(repeats: list[int], n_train: int) -> None:
    assert regularisation_order(repeats, n_train) == kohya(repeats, n_train)


def test_batches_do_not_mix_buckets() -> None:
    assert batches_per_epoch([5, 3, 1], 2) == 3 + 2 + 1
    assert batches_per_epoch([], 4) == 0


def test_steps_may_end_within_an_epoch() -> None:
    assert epoch_count(937, 936) == 2
    assert saved_epochs(937, 936, 1) == [1]
    assert saved_epochs(936, 936, 1) == []
    assert saved_epochs(10 * 936, 936, 3) == [3, 6, 9]
    assert saved_epochs(9 * 936, 936, 3) == [3, 6]
    assert saved_epochs(9 * 936, 936, 0) == []


def test_a_run_needs_a_length() -> None:
    with pytest.raises(ValueError, match="neither epochs nor steps"):
        total_steps(None, None, 10)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (100, 100), (0.0, 0), (0.5, 1404), (0.01, 28)])
def test_warmup(warmup: int | float, steps: int) -> None:
    assert warmup_steps(warmup, 2808) == steps


@pytest.mark.parametrize("pictures", [2, 3, 7, 13, 99, 100, 101, 1000])
def test_the_split_that_is_advised_holds_a_picture_out(pictures: int) -> None:
    split = float(nothing_held_out(0.001, pictures).rpartition(" ")[2])
    assert held_out(pictures, split, 0, 0)
    assert not held_out(pictures, split - 0.01, 0, 0) or pictures > 100
