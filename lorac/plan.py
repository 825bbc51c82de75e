"""`lorac plan`: what a recipe means in pictures, samples, steps and files, before anything runs."""

from __future__ import annotations

from collections import Counter

from lorac.graph.lower import bucketing, training_resolution
from lorac.kinds.image import Bucketing
from lorac.listing import Picture, pictures
from lorac.recipe import arithmetic
from lorac.recipe.base import BaseFacts, base_facts
from lorac.recipe.recipe import Recipe


def lines(recipe: Recipe) -> list[str]:
    """The plan of one recipe, a fact per line."""
    train, network = recipe.train, recipe.network
    facts = base_facts(train.base, recipe.where("train.base"))
    found = [(spec, pictures(spec.path, recipe.caption.extension, spec.where)) for spec in recipe.sources]
    regularisation = [(spec, pictures(spec.path, recipe.caption.extension, spec.where)) for spec in recipe.regularisation]
    samples = [picture for spec, folder in found for picture in folder for _ in range(spec.repeats)]
    class_pictures = [(picture, spec.repeats) for spec, folder in regularisation for picture in folder]
    order = arithmetic.regularisation_order([repeats for _, repeats in class_pictures], len(samples))
    shown = samples + [class_pictures[index][0] for index in order]
    buckets = bucket_sizes(recipe, facts, shown)
    batches = arithmetic.batches_per_epoch(buckets.values(), train.batch_size)
    steps = arithmetic.total_steps(train.epochs, train.steps, batches)
    saved = arithmetic.saved_epochs(steps, batches, train.save_every_n_epochs)
    rows = [("base", f"{train.base}, {training_resolution(recipe, facts)} px")]
    for spec, folder in found:
        rows.append(("source", f"{spec.path}: {len(folder)} x {spec.repeats} repeats = {len(folder) * spec.repeats}"))
    for spec, folder in regularisation:
        rows.append(("regularisation", f"{spec.path}: {len(folder)} pictures"))
    if regularisation:
        rows.append(("", f"matched one to one: {len(order)} regularisation samples beside {len(samples)}"))
    rows += [
        ("epoch", f"{batches} steps of batch {train.batch_size}, {len(shown)} samples"),
        ("run", f"{steps} steps = {steps / batches:g} epochs; a training picture is seen {_views(recipe, steps, batches)}"),
        ("buckets", ", ".join(f"{size} ({count})" for size, count in sorted(buckets.items()))),
        ("learning rate", f"U-Net {train.unet_lr:g}, text encoder {train.text_encoder_lr:g}, {train.lr_scheduler}, "
                          f"{arithmetic.warmup_steps(train.lr_warmup_steps, steps)} steps of warm-up"),
        ("network", f"dim {network.dim}, alpha {network.alpha:g}, {' and '.join(network.targets).replace('_', ' ')}"),
        ("files", ", ".join([f"{recipe.name}-{n:06d}.safetensors" for n in range(1, len(saved) + 1)] + [f"{recipe.name}.safetensors"])),
    ]
    return [recipe.name, *(f"  {name:<15} {text}" for name, text in rows)]


def bucket_sizes(recipe: Recipe, facts: BaseFacts, shown: list[Picture]) -> Counter[str]:
    """Samples per bucket, from the pictures' headers."""
    from PIL import Image

    settings = Bucketing(**bucketing(recipe, facts))  # type: ignore[arg-type]
    counts = Counter(picture.path for picture in shown)
    buckets: Counter[str] = Counter()
    for path, count in counts.items():
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 swap the sides
                size = image.size[::-1] if turned else image.size
        except OSError:
            buckets["unreadable"] += count
            continue
        buckets["x".join(map(str, settings.place(*size)[1]))] += count
    return buckets


def _views(recipe: Recipe, steps: int, batches: int) -> str:
    views = sorted({spec.repeats * steps / batches for spec in recipe.sources})
    return " or ".join(f"{count:g}" for count in views) + " times"
