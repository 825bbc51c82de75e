"""The schedule: the article's arithmetic, kohya's order, captions, bytes, speed."""

from __future__ import annotations

import subprocess
import sys
from array import array
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorac.sd.tokenizer import Tokenizer
from lorac.train.lr import Curve
from lorac.train.schedule import Item, Schedule, Settings, Subset, Variant
from lorac.train.slices import Slice, decode, encode

SETTINGS = Settings(seed=23, lr_text=1e-4, lr_unet=2e-4, learning_rate=2e-4, epochs=1)


def item(tags: int = 4, bucket: tuple[int, int] = (64, 64), first: int = 100) -> Item:
    """A picture whose tag i is the id `first + i`, with 267 for the comma."""
    return Item(bucket, [[Variant([[first + i, 267] for i in range(tags)], [[first + i] for i in range(tags)])]])


def pictures(count: int, repeats: int = 1, regularisation: bool = False, tags: int = 4) -> Subset:
    return Subset(repeats, regularisation, [item(tags) for _ in range(count)])


@pytest.mark.parametrize(
    ("sets", "epochs", "steps"),
    [([(13, 36)], 6, 2808), ([(32, 16)], 6, 3072), ([(21, 25)], 6, 3150), ([(57, 10)], 6, 3420)],
)
def test_the_articles_runs_have_the_articles_steps(sets: list[tuple[int, int]], epochs: int, steps: int) -> None:
    subsets = [pictures(count, repeats) for count, repeats in sets]
    assert Schedule(subsets, replace(SETTINGS, epochs=epochs)).summary.steps == steps


def test_with_regularisation_the_same_steps_are_half_the_epochs() -> None:
    schedule = Schedule(
        [pictures(13, 36), pictures(400, regularisation=True)],
        replace(SETTINGS, epochs=None, steps=2808, save_every_n_epochs=1, prior_loss_weight=0.5),
    )
    summary = schedule.summary
    assert (summary.train_samples, summary.regularisation_samples) == (468, 468)
    assert (summary.batches_per_epoch, summary.epochs, summary.steps) == (936, 3, 2808)
    assert summary.views == (108.0, 3 * 468 / 400)
    slices = list(schedule.slices())
    assert [(part.first_step, len(part)) for part in slices] == [(0, 936), (936, 936), (1872, 936)]
    for part in slices:
        shown = Counter(part.item)
        assert [shown[i] for i in range(13)] == [36] * 13
        assert [shown[13 + i] for i in range(400)] == [2] * 68 + [1] * 332
        assert all(w == (1.0 if i < 13 else 0.5) for i, w in zip(part.item, part.weight, strict=True))


def test_batches_keep_to_their_bucket_and_epochs_differ() -> None:
    subsets = [Subset(3, False, [item(bucket=(64, 64 + 8 * (i % 3))) for i in range(7)])]
    schedule = Schedule(subsets, replace(SETTINGS, epochs=2, batch_size=4, save_every_n_epochs=1))
    # 9 samples of bucket 0 and 6 of each other: 3 + 2 + 2 batches.
    assert schedule.summary.batches_per_epoch == 7
    first, second = schedule.slices()
    for part in (first, second):
        for step in part.steps():
            assert len({subsets[0].items[sample.item].bucket for sample in step.batches[0]}) == 1
        assert sorted(part.size) == [1, 2, 2, 4, 4, 4, 4]
        assert Counter(part.item) == dict.fromkeys(range(7), 3)
    assert list(first.item) != list(second.item)


def test_steps_may_end_within_an_epoch() -> None:
    schedule = Schedule([pictures(10)], replace(SETTINGS, epochs=None, steps=25, save_every_n_epochs=1))
    assert [len(part) for part in schedule.slices()] == [10, 10, 5]
    assert schedule.summary.epochs == 3
    assert [len(part) for part in Schedule([pictures(10)], replace(SETTINGS, epochs=2)).slices()] == [20]


def test_learning_rates_follow_the_curve_in_both_groups() -> None:
    settings = replace(SETTINGS, epochs=5, lr_scheduler="cosine_with_restarts", lr_warmup_steps=0.1, lr_text=0.0)
    (part,) = Schedule([pictures(10)], settings).slices()
    curve = Curve("cosine_with_restarts", 50, 5)
    assert list(part.lr_unet) == [2e-4 * curve.factor(step) for step in range(50)]
    assert set(part.lr_text) == {0.0}


def test_captions_are_shuffled_behind_the_kept_tags() -> None:
    settings = replace(SETTINGS, epochs=40, shuffle_caption=True, keep_tokens=1)
    (part,) = Schedule([pictures(1)], settings).slices()
    captions = [tuple(step.batches[0][0].ids) for step in part.steps()]
    assert all(ids[:2] == (100, 267) and ids[1::2] == (267,) * 3 for ids in captions)
    assert {ids[2::2] for ids in captions} == {(a, b, c) for a in X for b in X for c in X if len({a, b, c}) == 3}


X = (101, 102, 103)


def test_caption_dropout_empties_and_tag_dropout_thins() -> None:
    (part,) = Schedule([pictures(100)], replace(SETTINGS, caption_dropout_rate=0.3)).slices()
    assert 15 < list(part.length).count(0) < 45
    (part,) = Schedule([pictures(100)], replace(SETTINGS, caption_tag_dropout_rate=0.5, keep_tokens=1)).slices()
    lengths = Counter(part.length)
    assert set(lengths) == {1, 3, 5, 7}
    settings = replace(SETTINGS, epochs=4, caption_dropout_every_n_epochs=2, save_every_n_epochs=1)
    dropped = [set(part.length) == {0} for part in Schedule([pictures(3)], settings).slices()]
    assert dropped == [False, True, False, True]


def test_caption_settings_change_neither_order_nor_noise() -> None:
    plain, shuffled = (
        next(Schedule([pictures(9)], replace(SETTINGS, shuffle_caption=on, caption_dropout_rate=0.2 * on)).slices())
        for on in (False, True)
    )
    assert (plain.item, plain.timestep, plain.noise_seed) == (shuffled.item, shuffled.timestep, shuffled.noise_seed)
    assert plain.ids != shuffled.ids


def test_a_plain_schedule_has_the_bits_it_always_had() -> None:
    """Recorded before marks, choices, mirroring, accumulation and validation came: a plain recipe draws as before."""
    sets = [
        Subset(3, False, [item(5, (64, 64 + 8 * (i % 3)), 100 * i) for i in range(7)]),
        Subset(1, True, [item(3, first=1000 + i) for i in range(30)]),
    ]
    settings = replace(
        SETTINGS,
        epochs=3,
        batch_size=2,
        save_every_n_epochs=1,
        shuffle_caption=True,
        keep_tokens=1,
        caption_dropout_rate=0.1,
        caption_tag_dropout_rate=0.2,
        prior_loss_weight=0.5,
        lr_text=0.0,
        lr_unet=1.0,
    )
    data = b"".join(encode(part) for part in Schedule(sets, settings).slices())
    assert sha256(data).hexdigest() == "9bab96c05aa0181a5378ab9b0a39f078257bb42642c84a68e904a9ebc93d786f"


def test_a_longer_run_begins_with_the_slices_of_a_shorter_one() -> None:
    short, long = (
        [encode(part) for part in Schedule([pictures(9)], replace(SETTINGS, epochs=n, save_every_n_epochs=1)).slices()]
        for n in (2, 4)
    )
    assert long[:2] == short


def test_timesteps_and_noise_are_spread_over_their_ranges() -> None:
    (part,) = Schedule([pictures(20)], replace(SETTINGS, epochs=100)).slices()
    assert len(set(part.noise_seed)) == 2000
    counts = Counter(t // 100 for t in part.timestep)
    assert set(counts) == set(range(10))
    assert all(140 < n < 260 for n in counts.values())
    (part,) = Schedule([pictures(20)], replace(SETTINGS, min_timestep=200, max_timestep=203)).slices()
    assert set(part.timestep) == {200, 201, 202}


def test_ids_of_shuffled_tags_are_the_ids_of_the_joined_text() -> None:
    tags = ["izumi riho", "1girl", "o_o", "blue eyes (light)", "solo,", "t-shirt", "ガール", "high-waist skirt", "^_^"]
    encode_text = Tokenizer().encode
    caption = Variant([encode_text(f"{tag},") for tag in tags], [encode_text(tag) for tag in tags])
    picture = Item((64, 64), [[caption]])
    (part,) = Schedule(
        [Subset(1, False, [picture])],
        replace(SETTINGS, epochs=30, shuffle_caption=True, caption_tag_dropout_rate=0.3, max_token_length=225),
    ).slices()
    by_ids = {tuple(encode_text(tag)): tag for tag in tags}
    assert len(by_ids) == len(tags)
    stream_of_texts = {tuple(encode_text(text)) for text in _orders(tags, 30)}
    assert {tuple(step.batches[0][0].ids) for step in part.steps()} == stream_of_texts


def _orders(tags: list[str], epochs: int) -> list[str]:
    """The texts that the schedule of one picture should show, from the same draws."""
    from lorac.captions import joined, variant
    from lorac.rng import Stream

    texts = []
    for step in range(epochs):
        stream = Stream(SETTINGS.seed, "sample", step, 0)
        stream.below(1000)
        stream.word()
        texts.append(joined(tags[i] for i in variant(tags, stream, shuffle=True, tag_dropout=0.3)))
    return texts


def test_long_captions_are_cut_and_counted() -> None:
    schedule = Schedule([pictures(2, tags=50), pictures(1, tags=10)], replace(SETTINGS, max_token_length=75))
    assert schedule.summary.truncated_captions == 2
    (part,) = schedule.slices()
    assert sorted(part.length) == [19, 75, 75]


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        Schedule([pictures(3, regularisation=True)], SETTINGS)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 5)), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_slices_are_the_run_and_survive_their_bytes(
    sets: list[tuple[int, bool, int]], batch: int, steps: int, every: int
) -> None:
    subsets = [Subset(n, reg, [item(first=500 * i) for i in range(count)]) for n, reg, count in sets]
    if not any(subset.items for subset in subsets if not subset.regularisation):
        return
    settings = replace(SETTINGS, epochs=None, steps=steps, batch_size=batch, save_every_n_epochs=every)
    slices = list(Schedule(subsets, settings).slices())
    assert sum(map(len, slices)) == steps
    assert all(a.first_step + len(a) == b.first_step for a, b in pairwise(slices))
    for part in slices:
        data = encode(part)
        again = decode(data)
        assert again == part
        assert encode(again) == data
        assert encode(Slice.of(again.steps(), again.first_step, again.max_token_length)) == data


def test_the_layout_is_the_documented_one() -> None:
    (part,) = Schedule([pictures(2, tags=1)], replace(SETTINGS, max_token_length=150)).slices()
    data = encode(part)
    assert data[:8] == b"lorac.s2"
    assert [int.from_bytes(data[i : i + 4], "little") for i in range(8, 32, 4)] == [2, 2, 2, 2, 0, 150]
    assert len(data) == 32 + 2 * (8 + 8 + 8 + 8 + 4 + 4 + 4 + 2 + 2 + 2 + 1)
    assert data[32:48] == array("d", [1e-4, 1e-4]).tobytes()
    assert data[-6:] == bytes([100, 0, 100, 0, 0, 0])


def test_damaged_bytes_are_refused() -> None:
    (part,) = Schedule([pictures(3)], SETTINGS).slices()
    good = encode(part)
    for bad in (good[:-1], good + b"\0", b"lorac.s0" + good[8:], b"", good[:20]):
        with pytest.raises(ValueError, match="schedule slice"):
            decode(bad)
    batches_of_first_step = 32 + 3 * (4 * 8 + 4)
    with pytest.raises(ValueError, match="counts disagree"):
        decode(good[:batches_of_first_step] + b"\2" + good[batches_of_first_step + 1 :])


def test_scheduling_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, lorac.train.schedule; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
