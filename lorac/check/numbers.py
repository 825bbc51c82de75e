"""Rules about counts: regularisation, steps, buckets, held-out pictures."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

from lorac.check.material import Material, picture_count
from lorac.check.rule import Found
from lorac.recipe import arithmetic

FEW = 8
"""More repetitions than this in an epoch make a regularisation picture a training picture."""

MOST_EPOCHS, ROUND = 30, 100
"""Epochs that one plans for a LoRA at most, and what steps are multiples of that were never counted in epochs."""


def few_regularisation(material: Material) -> Found:
    """L006 few-regularisation: a handful of regularisation pictures fills an epoch

    Why: Regularisation samples are matched one to one with the training samples. A few pictures are repeated until
    there are enough, and a picture seen that often is learnt instead of the class.

    Before:
        36 repeats of 13 pictures, 10 regularisation pictures: each fills 47 samples

    After:
        36 repeats of 13 pictures, 400 regularisation pictures

    Remedy: Add regularisation pictures, or let the base draw them: generate = { prompt = "1girl", count = 400 }.
    """
    count = sum(map(picture_count, material.regularisation))
    if count and len(material.run.order) > FEW * count:
        text = f"{count} regularisation pictures fill {len(material.run.order)} samples an epoch; add pictures"
        yield material.recipe.where("regularisation"), text


def nothing_held_out(material: Material) -> Found:
    """L012 nothing-held-out: the validation split is too small to hold out a picture

    Why: Shares are rounded in favour of training, so a small share of few pictures is none, and the validation loss
    that was asked for never appears.

    Before:
        [validation]
        split = 0.05

    After:
        [validation]
        split = 0.1

    Remedy: Raise validation.split, or give pictures that are only validated, as validation.path.
    """
    split, counts = material.recipe.validation.split, [len(folder.pictures) for folder in material.sources]
    if split and not any(arithmetic.held_out(count, split, 0, 0) for count in counts):
        yield material.recipe.where("validation.split"), arithmetic.nothing_held_out(split, max(counts))


def lonely_bucket(material: Material) -> Found:
    """L027 lonely-picture: a picture is alone in its bucket, with batches of several

    Why: A batch never mixes buckets. The batches of a bucket with one picture hold nothing but that picture, so whole
    steps go to it alone, and it weighs more than the others.

    Before:
        [train]
        batch_size = 4
        buckets: 512x512 (40 pictures), 320x704 (1 picture)

    After:
        [train]
        batch_size = 4
        buckets: 512x512 (41 pictures)

    Remedy: Crop the picture to the shape of the others, or set train.batch_size = 1.
    """
    size = material.recipe.train.batch_size
    buckets = Counter(placed.bucket for placed in material.placed.values())
    lonely = [bucket for bucket, count in buckets.items() if count == 1]
    if size > 1 and lonely and len(buckets) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(lonely)[:3])
        verb = "has" if len(lonely) == 1 else "have"
        text = f"{len(lonely)} of {len(buckets)} buckets {verb} a single picture ({shown}), so batches of {size}"
        yield material.recipe.where("train.batch_size"), f"{text} show nothing else; crop it like the others"


def halved_epochs(material: Material) -> Found:
    """L028 halved-epochs: the steps were counted without the regularisation pictures

    Why: An epoch shows as many regularisation samples as training samples, so it is twice as long. The article's 2808
    steps were meant as 6 epochs of 13 x 36 samples and were 3: each picture was seen 108 times instead of 216. Told are
    steps that come to a few epochs exactly; round ones, such as 3000, are taken for chosen as they are.

    Before:
        [train]
        steps = 2808

    After:
        [train]
        epochs = 6

    Remedy: Say the length in epochs, or count twice the samples; `lorac plan` shows the arithmetic.
    """
    train, run = material.recipe.train, material.run
    if train.steps is None or not run.order:
        return
    shown = train.steps * train.batch_size * train.gradient_accumulation_steps
    passes, rest = divmod(shown, run.samples)
    if rest == 0 and 1 < passes <= MOST_EPOCHS and train.steps % ROUND:
        both = run.samples + len(run.order)
        text = f"{train.steps} steps would be {passes} epochs of {run.samples} samples, but with regularisation an"
        text += f" epoch has {both} and they are {shown / both:.3g}"
        yield material.recipe.where("train.steps"), f"{text}; if {passes} were meant, set epochs = {passes}"


def unseen_regularisation(material: Material) -> Found:
    """L029 unseen-regularisation: most regularisation pictures are never shown

    Why: An epoch takes as many regularisation samples as it has training samples, from the first picture on, the same
    ones each epoch. Pictures behind that are never seen, whole folders of them where there are several.

    Before:
        130 training samples, 1000 regularisation pictures

    After:
        520 training samples, 500 regularisation pictures

    Remedy: Raise the repeats of the sources, or give fewer regularisation pictures.
    """
    ends = list(accumulate(map(picture_count, material.regularisation)))
    shown = set(material.run.order)
    for folder, end in zip(material.regularisation, ends, strict=True):
        count = picture_count(folder)
        seen = sum(number in shown for number in range(end - count, end))
        if seen * 2 < count:
            many = f"{seen} of {count}" if seen else f"none of {count}"
            text = f"{many} pictures of {folder.label} are shown beside {material.run.samples} training samples"
            yield folder.spec.where, f"{text}; raise repeats of the sources, or give fewer"
