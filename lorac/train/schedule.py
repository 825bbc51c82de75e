"""The whole training run as data: which sample, caption, learning rate, timestep and noise seed every step uses.

Nothing is drawn while training. A schedule is a pure function of the captions' tokens, the counts and the settings,
so a resumed, a repeated and an uninterrupted run read the same rows; and two runs share the slices in which their
schedules agree. This module runs in every build, so it imports neither torch nor numpy.

Order of samples as in kohya-ss/sd-scripts: an epoch is the training pictures with their repeats and as many
regularisation pictures; batches never mix buckets; samples are shuffled within a bucket, then the batches as a whole.
A step takes one batch, or several with gradient accumulation. Pictures held out for validation are never trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TypeVar

from lorac.captions import is_dropped, variant
from lorac.recipe.arithmetic import (
    held_out,
    regularisation_order,
    run_length,
    saved_epochs,
    warmup_steps,
)
from lorac.rng import Stream
from lorac.train.lr import Curve
from lorac.train.slices import Sample, Slice, Step

_T = TypeVar("_T")
VALIDATION_TIMESTEPS = 4
"""kohya's `NUM_VALIDATION_TIMESTEPS`."""


@dataclass(frozen=True)
class Variant:
    """One reading of a caption: the ids of each tag, with the comma that follows it and without.

    `"a, b"` has the ids of `"a,"` and of `"b"`: CLIP's tokenizer never merges across white space. The first `start`
    tags (None: as many as `keep_tokens` says) and the last `end` keep their places.
    """

    with_comma: Sequence[Sequence[int]]
    bare: Sequence[Sequence[int]]
    start: int | None = None
    end: int = 0

    def ids(self, order: Sequence[int], limit: int) -> list[int]:
        """The ids of the tags `order`, joined by `", "`, cut off at `limit`; no begin or end token."""
        ids: list[int] = []
        for index in order[:-1]:
            ids += self.with_comma[index]
        for index in order[-1:]:
            ids += self.bare[index]
        return ids[:limit]

    @property
    def length(self) -> int:
        """Tokens of the whole caption."""
        return sum(map(len, self.with_comma[:-1])) + sum(map(len, self.bare[-1:]))


@dataclass(frozen=True)
class Item:
    """One picture: its bucket (width, height), and the lines of its caption with the variants of each."""

    bucket: tuple[int, int]
    lines: Sequence[Sequence[Variant]]


@dataclass(frozen=True)
class Subset:
    """Pictures with one number of repeats. An item's index counts through all subsets in the order given."""

    repeats: int
    regularisation: bool
    items: Sequence[Item]


@dataclass(frozen=True)
class Settings:
    """What the recipe says about the run. Learning rates are per optimiser step; 0 leaves a part untrained.

    Exactly one of `epochs` and `steps` is given; `lr_warmup_steps` is a number, or a share of the run if a float.
    `learning_rate` is what `polynomial` measures its end by. Timesteps are drawn from `min_timestep` to below
    `max_timestep`. `split` is the share of pictures that is held out, `validation_seed` says which and their noise.
    """

    seed: int
    lr_text: float
    lr_unet: float
    learning_rate: float
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    save_every_n_epochs: int = 0
    lr_scheduler: str = "constant"
    lr_warmup_steps: int | float = 0
    lr_scheduler_num_cycles: int = 1
    lr_scheduler_power: float = 1.0
    lr_scheduler_timescale: int | None = None
    lr_scheduler_min_lr_ratio: float | None = None
    lr_scheduler_step_rules: str | None = None
    lr_decay_steps: int | float = 0
    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    max_token_length: int = 75
    prior_loss_weight: float = 1.0
    min_timestep: int = 0
    max_timestep: int = 1000
    flip_aug: bool = False
    split: float = 0.0
    validation_seed: int = 0


@dataclass(frozen=True)
class Summary:
    """The run in numbers. `views` says for each subset how often one of its pictures is shown in the whole run.

    Samples and views are those of training: `validation_pictures` are held out of them.
    """

    train_samples: int
    regularisation_samples: int
    batches_per_epoch: int
    steps: int
    epochs: int
    views: tuple[float, ...]
    truncated_captions: int
    steps_per_epoch: int = 0
    validation_pictures: int = 0


class Schedule:
    """A run; its `slices` are made one by one, when asked for."""

    def __init__(self, subsets: Sequence[Subset], settings: Settings, never_trained: Sequence[Item] = ()) -> None:
        """`never_trained` are further pictures to validate; their indices follow those of the subsets.

        Raises ValueError if there are no training pictures, or neither epochs nor steps.
        """
        self.settings, self.never_trained = settings, never_trained
        self.items = [item for subset in subsets for item in subset.items]
        self.held_out = _held_out(subsets, settings)
        train, regularisation = _samples_of_an_epoch(subsets, frozenset(self.held_out))
        if not train:
            raise ValueError("no pictures to train on")
        self._regularisation = frozenset(regularisation)
        self._buckets: dict[tuple[int, int], list[int]] = {}
        for index in (*train, *regularisation):
            self._buckets.setdefault(self.items[index].bucket, []).append(index)
        length = run_length(
            map(len, self._buckets.values()),
            settings.batch_size,
            settings.gradient_accumulation_steps,
            settings.epochs,
            settings.steps,
        )
        lengths = (max(variant.length for line in item.lines for variant in line) for item in self.items)
        self.summary = Summary(
            train_samples=len(train),
            regularisation_samples=len(regularisation),
            batches_per_epoch=length.batches,
            steps=length.steps,
            epochs=length.epochs,
            views=_views(subsets, [*train, *regularisation], self.held_out, length.steps / length.steps_per_epoch),
            truncated_captions=sum(tokens > settings.max_token_length for tokens in lengths),
            steps_per_epoch=length.steps_per_epoch,
            validation_pictures=len(self.held_out) + len(never_trained),
        )

    def slices(self) -> Iterator[Slice]:
        """The run in pieces that end where a LoRA is saved; the last one ends with the run."""
        summary, length = self.summary, self.summary.steps_per_epoch
        saved = saved_epochs(summary.steps, length, self.settings.save_every_n_epochs)
        ends = [*(epoch * length for epoch in saved), summary.steps]
        steps = self._steps()
        for first, end in zip([0, *ends], ends, strict=False):
            yield Slice.of(islice(steps, end - first), first, self.settings.max_token_length)

    def validation(self) -> Slice:
        """What measures over-fitting: each held-out picture at kohya's four timesteps, always with the same noise.

        A step is one picture at one timestep, with its first caption whole and in the order written; empty if no
        picture is held out. Learning rates are 0. The noise of a picture that is never trained depends on its number
        among those, and not on the training pictures, so that recipes that validate the same folder can be compared.
        """
        settings = self.settings
        items = [(index, self.items[index], "validation noise", index) for index in self.held_out]
        first = len(self.items)
        items += [(first + n, item, "held-out noise", n) for n, item in enumerate(self.never_trained)]
        steps: list[Step] = []
        for index, item, purpose, number in items:
            caption = item.lines[0][0]
            ids = caption.ids(range(len(caption.bare)), settings.max_token_length)
            for timestep in validation_timesteps(settings.min_timestep, settings.max_timestep):
                noise_seed = Stream(settings.validation_seed, purpose, number, timestep).word()
                steps.append(Step(len(steps), 0.0, 0.0, [[Sample(index, timestep, noise_seed, 1.0, ids)]]))
        return Slice.of(steps, 0, settings.max_token_length)

    def _steps(self) -> Iterator[Step]:
        settings, summary = self.settings, self.summary
        curve = Curve(
            settings.lr_scheduler,
            summary.steps,
            warmup_steps(settings.lr_warmup_steps, summary.steps),
            settings.lr_scheduler_num_cycles,
            settings.lr_scheduler_power,
            settings.learning_rate,
            settings.lr_scheduler_timescale,
            settings.lr_scheduler_min_lr_ratio or 0.0,
            warmup_steps(settings.lr_decay_steps, summary.steps),
            settings.lr_scheduler_step_rules or "1",
        )
        together = settings.gradient_accumulation_steps
        for step in range(summary.steps):
            epoch, position = divmod(step, summary.steps_per_epoch)
            if position == 0:
                batches = self._batches(epoch)
            factor = curve.factor(step)
            slots = count()
            samples = [
                [self._sample(index, epoch, step, next(slots)) for index in batch]
                for batch in batches[position * together : (position + 1) * together]
            ]
            yield Step(step, settings.lr_text * factor, settings.lr_unet * factor, samples)

    def _batches(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch (from 0), as lists of item indices."""
        stream, size = Stream(self.settings.seed, "order", epoch), self.settings.batch_size
        batches: list[list[int]] = []
        for _, bucket in sorted(self._buckets.items()):
            order = bucket.copy()
            stream.shuffle(order)
            batches += (order[start : start + size] for start in range(0, len(order), size))
        stream.shuffle(batches)
        return batches

    def _sample(self, index: int, epoch: int, step: int, slot: int) -> Sample:
        # Timestep and noise are drawn first, so that caption settings do not change them; a plain caption draws nothing
        # for its line and variant.
        settings, item = self.settings, self.items[index]
        stream = Stream(settings.seed, "sample", step, slot)
        timestep = settings.min_timestep + stream.below(settings.max_timestep - settings.min_timestep)
        noise_seed = stream.word()
        caption = _drawn(stream, _drawn(stream, item.lines))
        order = variant(
            caption.bare,
            stream,
            caption_dropped=is_dropped(
                stream, epoch + 1, settings.caption_dropout_rate, settings.caption_dropout_every_n_epochs
            ),
            shuffle=settings.shuffle_caption,
            keep_tokens=settings.keep_tokens if caption.start is None else caption.start,
            keep_end=caption.end,
            tag_dropout=settings.caption_tag_dropout_rate,
        )
        weight = settings.prior_loss_weight if index in self._regularisation else 1.0
        flipped = settings.flip_aug and Stream(settings.seed, "flip", step, slot).below(2) == 1
        return Sample(index, timestep, noise_seed, weight, caption.ids(order, settings.max_token_length), flipped)


def _drawn(stream: Stream, choices: Sequence[_T]) -> _T:
    return choices[stream.below(len(choices))] if len(choices) > 1 else choices[0]


def validation_timesteps(lowest: int, end: int) -> list[int]:
    """kohya's: four, evenly between the ends of the range that is trained; 200, 400, 600, 800 of SD's 1000."""
    parts = VALIDATION_TIMESTEPS + 1
    return [lowest + (end - lowest) * part // parts for part in range(1, parts)]


def _held_out(subsets: Sequence[Subset], settings: Settings) -> list[int]:
    """Item indices of the pictures that are only validated."""
    found: list[int] = []
    first = 0
    for number, subset in enumerate(subsets):
        if not subset.regularisation:
            own = held_out(len(subset.items), settings.split, settings.validation_seed, number)
            found += (first + index for index in sorted(own))
        first += len(subset.items)
    return found


def _samples_of_an_epoch(subsets: Iterable[Subset], held_out: frozenset[int]) -> tuple[list[int], list[int]]:
    """Item indices of an epoch, repeats included: (training, regularisation)."""
    train: list[int] = []
    regularisation: list[tuple[int, int]] = []
    index = 0
    for subset in subsets:
        for _ in subset.items:
            if subset.regularisation:
                regularisation.append((index, subset.repeats))
            elif index not in held_out:
                train += [index] * subset.repeats
            index += 1
    order = regularisation_order([repeats for _, repeats in regularisation], len(train))
    return train, [regularisation[position][0] for position in order]


def _views(
    subsets: Iterable[Subset], samples: Sequence[int], held_out: Sequence[int], epochs: float
) -> tuple[float, ...]:
    views, first = [], 0
    for subset in subsets:
        end = first + len(subset.items)
        shown = sum(first <= index < end for index in samples)
        pictures = len(subset.items) - sum(first <= index < end for index in held_out)
        views.append(round(epochs * shown / max(1, pictures), 2))
        first = end
    return tuple(views)
