"""`lorac plan`: what a recipe means in pictures, samples, steps and files, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorac.graph.lower import bucketing, training_resolution
from lorac.kinds.image import Bucketing, Refused, upright_size
from lorac.listing import Picture, pictures, shown_path
from lorac.recipe import arithmetic
from lorac.recipe.base import BaseFacts, base_facts
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.schema import BUILTIN_BASE

FILES_SHOWN = 4
"""How many of the files of a run are named before the list is cut."""


@dataclass(frozen=True)
class Run:
    """The figures of one recipe. `order` are the regularisation pictures of an epoch, one for each sample."""

    sources: Sequence[tuple[PictureSet, Sequence[Picture]]]
    regularisation: Sequence[tuple[PictureSet, Sequence[Picture]]]
    samples: int
    order: Sequence[int]
    buckets: Mapping[str, int]
    batches: int
    steps: int


def lines(recipe: Recipe) -> list[str]:
    """The plan of one recipe, a fact per line. Raises InputError for folders that cannot be used."""
    facts = base_facts(recipe.train.base, recipe.where("train.base"))
    run = _run(recipe, facts)
    rows = [*_data_rows(run), *_training_rows(recipe, run), ("files", _files(recipe, run))]
    base = recipe.train.base if recipe.train.base == BUILTIN_BASE else shown_path(recipe.train.base)
    rows.insert(0, ("base", f"{base}, {training_resolution(recipe, facts)} px"))
    return [f"  {name:<15} {text}" for name, text in rows]


def _run(recipe: Recipe, facts: BaseFacts) -> Run:
    train, extension = recipe.train, recipe.caption.extension
    sources, classes = (
        [(spec, pictures(spec.path, extension, spec.where)) for spec in specs]
        for specs in (recipe.sources, recipe.regularisation)
    )
    shown = [picture for spec, folder in sources for picture in folder for _ in range(spec.repeats)]
    samples = len(shown)
    class_pictures = [(picture, spec.repeats) for spec, folder in classes for picture in folder]
    order = arithmetic.regularisation_order([repeats for _, repeats in class_pictures], samples)
    shown += [class_pictures[index][0] for index in order]
    buckets = bucket_sizes(recipe, facts, shown)
    batches = arithmetic.batches_per_epoch(buckets.values(), train.batch_size)
    steps = arithmetic.total_steps(train.epochs, train.steps, batches)
    return Run(sources, classes, samples, order, buckets, batches, steps)


def _data_rows(run: Run) -> list[tuple[str, str]]:
    rows = []
    for spec, folder in run.sources:
        count = len(folder)
        rows.append(("source", f"{shown_path(spec.path)}: {count} x {spec.repeats} repeats = {count * spec.repeats}"))
    rows += [
        ("regularisation", f"{shown_path(spec.path)}: {len(found)} pictures") for spec, found in run.regularisation
    ]
    if run.regularisation:
        rows.append(("", f"matched one to one: {len(run.order)} regularisation samples beside {run.samples}"))
    return rows


def _training_rows(recipe: Recipe, run: Run) -> list[tuple[str, str]]:
    train, network = recipe.train, recipe.network
    epochs = run.steps / run.batches
    views = " or ".join(f"{count:g}" for count in sorted({spec.repeats * epochs for spec in recipe.sources}))
    targets = " and ".join({"unet": "U-Net", "text_encoder": "text encoder"}[target] for target in network.targets)
    warmup = arithmetic.warmup_steps(train.lr_warmup_steps, run.steps)
    return [
        ("epoch", f"{run.batches} steps of batch {train.batch_size}, {run.samples + len(run.order)} samples"),
        ("run", f"{run.steps} steps = {epochs:g} epochs; a training picture is seen {views} times"),
        ("buckets", ", ".join(f"{size} ({count})" for size, count in sorted(run.buckets.items()))),
        ("learning rate", f"U-Net {train.unet_lr:g}, text encoder {train.text_encoder_lr:g}"),
        ("", f"{train.lr_scheduler}, {warmup} steps of warm-up"),
        ("network", f"dim {network.dim}, alpha {network.alpha:g}, {targets}"),
    ]


def _files(recipe: Recipe, run: Run) -> str:
    saved = arithmetic.saved_epochs(run.steps, run.batches, recipe.train.save_every_n_epochs)
    numbered = [f"{recipe.name}-{n:06d}.safetensors" for n in saved]
    if len(numbered) > FILES_SHOWN:
        numbered[FILES_SHOWN - 1 : -1] = ["…"]
    return ", ".join([*numbered, f"{recipe.name}.safetensors"])


def bucket_sizes(recipe: Recipe, facts: BaseFacts, shown: Sequence[Picture]) -> Counter[str]:
    """Samples per bucket, from the pictures' headers; "unusable" counts those that a build would refuse."""
    settings = Bucketing(**bucketing(recipe, facts))  # type: ignore[arg-type]
    buckets: Counter[str] = Counter()
    for path, count in Counter(picture.path for picture in shown).items():
        try:
            bucket = settings.place(*upright_size(path))[1]
        except Refused:
            buckets["unusable"] += count
        else:
            buckets["x".join(map(str, bucket))] += count
    return buckets
