"""Golden values of kohya-ss/sd-scripts (48d368fa) that no trainer tests: counts, captions, tokens, file numbers.

Buckets are in test_recipe_buckets.py, learning rates in test_lr.py. Each reference is written out here from what
sd-scripts does; names of its functions are given so that a reader can compare.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from lorac.captions import Rules
from lorac.kinds.schedule import read_tokens
from lorac.recipe.arithmetic import held_out, run_length, saved_epochs
from lorac.sd.clip import TextConfig, TextEncoder
from lorac.sd.tokenizer import chunk, vocabulary
from lorac.train.schedule import Item, Schedule, Settings, Subset, Variant, validation_timesteps
from lorac.wildcards import final
from tests.small import randomise
from tests.test_wildcards import made

SETTINGS = Settings(seed=23, lr_text=1e-4, lr_unet=1e-4, learning_rate=1e-4, epochs=1)
REFERENCE = CLIPTokenizer(*vocabulary(), model_max_length=77)
ARTICLE = [(13, 36, 2808), (32, 16, 3072), (21, 25, 3150), (57, 10, 3420)]


def subset(count: int, repeats: int = 1, regularisation: bool = False, bucket: tuple[int, int] = (512, 512)) -> Subset:
    return Subset(repeats, regularisation, [Item(bucket, [[Variant([[1, 267]], [[1]])]]) for _ in range(count)])


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pictures", "repeats", "steps"), ARTICLE)
def test_the_articles_four_sets(pictures: int, repeats: int, steps: int) -> None:
    """The popup's max_train_steps was 6 x the training samples: with regularisation, 3 epochs of twice as many."""
    samples = pictures * repeats
    alone = Schedule([subset(pictures, repeats)], replace(SETTINGS, epochs=6)).summary
    assert (alone.steps, alone.batches_per_epoch, alone.views) == (steps, samples, (6.0 * repeats,))
    sets = [subset(pictures, repeats), subset(400, regularisation=True)]
    both = Schedule(sets, replace(SETTINGS, epochs=None, steps=steps)).summary
    assert (both.train_samples, both.regularisation_samples) == (samples, samples)
    assert (both.steps, both.batches_per_epoch, both.epochs) == (steps, 2 * samples, 3)
    assert both.views[0] == 3.0 * repeats
    assert Schedule(sets, replace(SETTINGS, epochs=3)).summary.steps == steps


def test_the_head_set_has_468_and_468() -> None:
    assert (13 * 36, 32 * 16, 21 * 25, 57 * 10) == (468, 512, 525, 570)
    (epoch,) = Schedule([subset(13, 36), subset(400, regularisation=True)], SETTINGS).slices()
    assert len(epoch) == 936
    shown = Counter(epoch.item)
    # The first pass takes all 400, the second the first 68.
    assert [shown[13 + number] for number in range(400)] == [2] * 68 + [1] * 332
    surplus = Schedule([subset(2, 3), subset(400, 2, regularisation=True)], SETTINGS)
    (epoch,) = surplus.slices()
    assert Counter(index for index in epoch.item if index >= 2) == {2: 2, 3: 2, 4: 2}, "repeats first, the rest never"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))
def test_batches_and_steps(buckets: list[int], batch: int, accumulation: int, epochs: int) -> None:
    """train_network.py: max_train_steps and num_train_epochs; the last batch of a bucket may be short."""
    subsets = [subset(count, bucket=(64, 64 * (1 + number))) for number, count in enumerate(buckets)]
    how = replace(SETTINGS, batch_size=batch, gradient_accumulation_steps=accumulation, epochs=epochs)
    schedule = Schedule(subsets, how)
    length = sum(ceil(count / batch) for count in buckets)
    steps = epochs * ceil(length / accumulation)
    assert schedule.summary.batches_per_epoch == length
    assert (schedule.summary.steps, schedule.summary.epochs) == (steps, epochs)
    made_steps = [step for part in schedule.slices() for step in part.steps()]
    assert len(made_steps) == steps
    per_epoch = steps // epochs
    for first in range(0, steps, per_epoch):
        taken = [batch for step in made_steps[first : first + per_epoch] for batch in step.batches]
        assert len(taken) == length
        short = [count % batch for count in buckets if count % batch]
        assert sorted(map(len, taken)) == sorted([batch] * (length - len(short)) + short)
        assert Counter(sample.item for batch in taken for sample in batch) == dict.fromkeys(range(sum(buckets)), 1)
    for given_steps in (1, steps, steps + 1):
        run = run_length(buckets, batch, accumulation, None, given_steps)
        assert (run.steps, run.epochs) == (given_steps, ceil(given_steps / ceil(length / accumulation)))


@pytest.mark.parametrize(("batches", "accumulation"), [(7, 3), (6, 3), (1, 4), (5, 1)])
def test_a_step_takes_the_batches_that_accelerate_gives_it(batches: int, accumulation: int) -> None:
    """At the end of its data accelerate steps with what it has, so no step spans two epochs."""
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, cpu=True)
    model = torch.nn.Linear(1, 1)
    data = accelerator.prepare(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(batches, 1))))
    theirs, pending = [], 0
    for _ in range(2):
        for _ in data:
            pending += 1
            with accelerator.accumulate(model):
                if accelerator.sync_gradients:
                    theirs.append(pending)
                    pending = 0
    how = replace(SETTINGS, gradient_accumulation_steps=accumulation, epochs=2, save_every_n_epochs=1)
    ours = [len(step.batches) for part in Schedule([subset(batches)], how).slices() for step in part.steps()]
    assert ours == theirs


def test_accumulated_samples_each_have_noise_of_their_own() -> None:
    how = replace(SETTINGS, gradient_accumulation_steps=3, batch_size=2, epochs=4)
    (part,) = Schedule([subset(9)], how).slices()
    assert len(set(part.noise_seed)) == len(part.noise_seed) == 36


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 5))
def test_numbered_files(steps: int, per_epoch: int, every: int) -> None:
    """train_network.py saves after epoch e where e % every == 0 and e < num_train_epochs, then the unnumbered file."""
    epochs = ceil(steps / per_epoch)
    numbers = [epoch + 1 for epoch in range(epochs) if (epoch + 1) % every == 0 and epoch + 1 < epochs]
    assert saved_epochs(steps, per_epoch, every) == numbers
    how = replace(SETTINGS, epochs=None, steps=steps, save_every_n_epochs=every)
    assert len(list(Schedule([subset(per_epoch)], how).slices())) == len(numbers) + 1


# -- validation ------------------------------------------------------------------------------------


def test_as_many_pictures_are_trained_as_with_kohyas_split() -> None:
    """split_train_val: the training part is rounded up."""
    for count in range(1, 60):
        for split in (0.0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9, 0.99):
            own = held_out(count, split, 23, 0)
            assert own <= set(range(count))
            assert count - len(own) == ceil(count * (1 - split)) >= 1
    assert len(held_out(13, 0.2, 23, 0)) == 2
    assert held_out(40, 0.5, 23, 0) != held_out(40, 0.5, 24, 0) != held_out(40, 0.5, 24, 1)


@given(st.integers(0, 999), st.integers(1, 1000))
def test_validation_timesteps(low: int, high: int) -> None:
    """numpy's linspace over 6 points without its ends, as integers."""
    low, high = min(low, high - 1), high
    assert validation_timesteps(low, high) == np.linspace(low, high, 6, dtype=int)[1:-1].tolist()


def test_held_out_pictures_are_validated_and_never_trained() -> None:
    assert validation_timesteps(0, 1000) == [200, 400, 600, 800]
    sets = [subset(10, 3), subset(4, 2), subset(50, regularisation=True)]
    how = replace(SETTINGS, epochs=3, split=0.25, validation_seed=5, flip_aug=True, shuffle_caption=True)
    schedule = Schedule(sets, how)
    # 10 - ceil(7.5) and 4 - ceil(3)
    assert len(schedule.held_out) == schedule.summary.validation_pictures == 2 + 1
    assert sum(index < 10 for index in schedule.held_out) == 2
    assert schedule.summary.train_samples == schedule.summary.regularisation_samples == 8 * 3 + 3 * 2
    assert schedule.summary.views[:2] == (9.0, 6.0)
    shown = {index for part in schedule.slices() for index in part.item}
    assert shown == set(range(64)) - set(schedule.held_out) - set(range(44, 64))
    steps = list(schedule.validation().steps())
    samples = [sample for step in steps for (batch,) in [step.batches] for sample in batch]
    assert [(s.item, s.timestep) for s in samples] == [(i, t) for i in schedule.held_out for t in (200, 400, 600, 800)]
    assert len({sample.noise_seed for sample in samples}) == 12
    assert {(s.weight, tuple(s.ids), s.flipped) for s in samples} == {(1.0, (1,), False)}
    again = Schedule(sets, replace(how, seed=99, epochs=1)).validation()
    assert again == schedule.validation(), "the same pictures and noise whatever else is trained"
    assert len(Schedule(sets, SETTINGS).validation()) == 0


# -- captions --------------------------------------------------------------------------------------


def process_caption(caption: str, draw: random.Random, **how: Any) -> str:
    """`BaseDataset.process_caption`: prefix and suffix, dropout, line, choices, parts, shuffle, tag dropout, join."""
    caption = f"{how['prefix']} {caption} {how['suffix']}"
    if draw.random() < how["dropout"]:
        return ""
    lines = caption.split("\n")
    caption = draw.choice(lines) if how["wildcard"] else lines[0]
    if how["wildcard"]:
        caption = caption.replace("{{", "⦅").replace("}}", "⦆")
        caption = re.sub(r"\{([^}]+)\}", lambda found: draw.choice(found[1].split("|")), caption)
        caption = caption.replace("⦅", "{").replace("⦆", "}")
    mark, last = how["separator"], []
    if mark and mark in caption:
        first, rest = caption.split(mark, 1)
        if mark in rest:
            rest, end = rest.split(mark, 1)
            last = [tag.strip() for tag in end.split(",") if tag.strip()]
        fixed = [tag.strip() for tag in first.split(",") if tag.strip()]
        flex = [tag.strip() for tag in rest.split(",") if tag.strip()]
    else:
        tags = [tag.strip() for tag in caption.strip().split(",")]
        fixed, flex = tags[: how["keep"]], tags[how["keep"] :]
    if how["shuffle"]:
        draw.shuffle(flex)
    flex = [tag for tag in flex if draw.random() >= how["tag_dropout"]]
    return ", ".join(fixed + flex + last)


ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "keep": ("riho, hat, bow, cat", {"keep": 3}),
    "drop": ("riho, hat", {"dropout": 0.3}),
    "thin": ("riho, hat, bow", {"keep": 1, "tag_dropout": 0.4, "shuffle": False}),
    "all": ("riho, hat, bow", {"keep": 1, "tag_dropout": 0.3, "dropout": 0.2}),
    "mark": ("riho ||| hat, bow", {"separator": "|||", "keep": 3}),
    "two marks": ("riho, girl ||| hat, bow ||| smile", {"separator": "|||", "tag_dropout": 0.3}),
    "no mark": ("riho, hat, bow", {"separator": "|||", "keep": 2}),
    "choice": ("{red|blue|red} hat, {a, b|c}", {"wildcard": True, "shuffle": False}),
    "escape": ("{{a}} {b|c}, {d|{{e}}}", {"wildcard": True, "shuffle": False}),
    "choice and marks": ("{riho|girl} ||| {hat, bow|cat} ||| {x|y}", {"wildcard": True, "separator": "|||"}),
    "first line": ("riho, hat\nbow", {"shuffle": False}),
}
PLAIN: dict[str, Any] = {"prefix": "", "suffix": "", "dropout": 0.0, "wildcard": False, "separator": "", "keep": 0}
PLAIN |= {"shuffle": True, "tag_dropout": 0.0}
SHOWN = 3000


@pytest.mark.parametrize("name", ORDERS)
def test_captions_are_shown_as_often_as_in_kohya(name: str) -> None:
    """The same texts, each about as often, from caption to token ids; 4.5 sigma of the difference of two counts."""
    raw, changes = ORDERS[name]
    how = PLAIN | {"prefix": "best, old,", "suffix": ", end"} | changes
    if name == "first line":
        how = how | {"suffix": ""}  # kohya's suffix would be on the second line
    draw = random.Random(1)
    texts = Counter(process_caption(raw, draw, **how) for _ in range(SHOWN))
    theirs: Counter[tuple[int, ...]] = Counter()
    for text, number in texts.items():
        theirs[tuple(REFERENCE(text, add_special_tokens=False)["input_ids"])] += number
    reading = {key: how[key] for key in ("separator", "wildcard") if how[key]}
    rules = Rules(prefix=how["prefix"], suffix=how["suffix"], **reading)
    caption = final(rules, raw if how["wildcard"] else raw.split("\n")[0])
    item = Item((64, 64), read_tokens(json.dumps(made(reading, caption)).encode()))
    (part,) = Schedule(
        [Subset(1, False, [item])],
        replace(
            SETTINGS,
            epochs=SHOWN,
            shuffle_caption=how["shuffle"],
            keep_tokens=how["keep"],
            caption_dropout_rate=how["dropout"],
            caption_tag_dropout_rate=how["tag_dropout"],
        ),
    ).slices()
    ours = Counter(tuple(step.batches[0][0].ids) for step in part.steps())
    for ids in ours | theirs:
        assert abs(ours[ids] - theirs[ids]) <= 4.5 * (ours[ids] + theirs[ids]) ** 0.5 + 1, REFERENCE.decode(ids)


def test_lines_are_drawn_before_choices() -> None:
    """Two lines are each shown half of the times, however many choices one has."""
    lines = read_tokens(
        b'{"lines":[[[null,0,[[[1],[1]]]]],[[null,0,[[[2],[2]]]],[null,0,[[[3],[3]]]],[null,0,[[[4],[4]]]]]]}'
    )
    (part,) = Schedule([Subset(1, False, [Item((64, 64), lines)])], replace(SETTINGS, epochs=SHOWN)).slices()
    shown = Counter(part.ids)
    assert abs(shown[1] - SHOWN / 2) < 4.5 * (SHOWN / 4) ** 0.5
    assert all(abs(shown[number] - SHOWN / 6) < 4.5 * (SHOWN / 6) ** 0.5 for number in (2, 3, 4))


# -- mirrored pictures -----------------------------------------------------------------------------


def test_half_of_the_showings_are_mirrored_and_nothing_else_changes() -> None:
    how = replace(SETTINGS, epochs=200, shuffle_caption=True, caption_dropout_rate=0.2)
    plain, mirrored = (next(Schedule([subset(10)], replace(how, flip_aug=on)).slices()) for on in (False, True))
    assert sum(plain.flipped) == 0
    assert abs(sum(mirrored.flipped) - 1000) < 4.5 * 500**0.5
    other = next(Schedule([subset(10)], replace(SETTINGS, epochs=200, flip_aug=True)).slices())
    assert other.flipped == mirrored.flipped, "caption settings do not change it"
    mirrored.flipped = plain.flipped
    assert mirrored == plain


# -- tokens ----------------------------------------------------------------------------------------


def kohyas_rows(text: str, length: int) -> list[list[int]]:
    """`TokenizeStrategy._get_input_ids` for SD1.x: padded with the end token, then cut into rows of 77."""
    ids = REFERENCE(text, padding="max_length", truncation=True, max_length=length + 2)["input_ids"]
    if length == 75:
        return [ids]
    return [[ids[0], *ids[start : start + 75], ids[-1]] for start in range(1, length + 2 - 77 + 2, 75)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 130), st.sampled_from([75, 150, 225]))
def test_chunks_are_kohyas(tags: int, length: int) -> None:
    text = ", ".join(f"tag {number}" for number in range(tags))
    ids = list(REFERENCE(text, add_special_tokens=False)["input_ids"])
    assert chunk(ids, length) == kohyas_rows(text, length)


@pytest.mark.parametrize(("length", "states"), [(75, 77), (150, 152), (225, 227)])
def test_the_unet_sees_77_152_or_227_states(length: int, states: int) -> None:
    """`SdTextEncodingStrategy.encode_tokens`: the first begin, 75 of each row, the last end; for short captions too."""
    encoder = TextEncoder(TextConfig(width=16, layers=2, heads=2, inner=32)).eval()
    randomise(encoder, seed=1)
    rows = torch.tensor([kohyas_rows("1girl, riho", length), kohyas_rows("hat, " * 120, length)])
    with torch.inference_mode():
        seen_BLD = encoder(rows if length > 75 else rows[:, 0])
        single = encoder(rows.view(-1, 77)).view(2, -1, 77, 16)
    assert seen_BLD.shape == (2, states, 16)
    theirs = [single[:, 0, :1], *(single[:, number, 1:76] for number in range(length // 75)), single[:, -1, -1:]]
    torch.testing.assert_close(seen_BLD, torch.cat(theirs, 1))
