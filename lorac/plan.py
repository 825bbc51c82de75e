"""`lorac plan`: what a recipe means in pictures, samples, steps and files, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lorac.dataset import pictures_of
from lorac.graph.gang import gangs
from lorac.graph.nodes import Graph, Node
from lorac.graph.scope import bucketing, training_resolution
from lorac.kinds import train
from lorac.kinds.gang_size import Cut
from lorac.kinds.image import Bucketing, Refused, header
from lorac.listing import Picture, shown_path
from lorac.recipe import arithmetic
from lorac.recipe.base import BaseFacts, base_facts
from lorac.recipe.buckets import Size
from lorac.recipe.collection import Collection as RecipeCollection
from lorac.recipe.fields import BUILTIN_BASE
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.train.schedule import validation_timesteps
from lorac.wildcards import final

FILES_SHOWN = 4
"""How many of the files of a run are named before the list is cut."""


@dataclass(frozen=True)
class Set:
    """One folder of pictures. `held_out` are the numbers of its pictures that are only validated."""

    spec: PictureSet
    pictures: Sequence[Picture]
    held_out: frozenset[int] = frozenset()

    @property
    def trained(self) -> list[Picture]:
        return [picture for number, picture in enumerate(self.pictures) if number not in self.held_out]


@dataclass(frozen=True)
class Looks:
    """What the headers of the pictures say: samples per bucket, the pictures whose alpha nobody chose, and those that
    cannot be used, with the reason."""

    buckets: Counter[str] = field(default_factory=Counter)
    transparent: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The figures of one recipe. `order` are the regularisation pictures of an epoch, one for each sample."""

    facts: BaseFacts
    sources: Sequence[Set]
    regularisation: Sequence[Set]
    samples: int
    order: Sequence[int]
    looks: Looks
    length: arithmetic.Length
    never_trained: Sequence[Set] = ()

    @property
    def held_out(self) -> int:
        return sum(len(folder.held_out) for folder in (*self.sources, *self.never_trained))

    @property
    def sets(self) -> tuple[Set, ...]:
        """All folders."""
        return (*self.sources, *self.regularisation, *self.never_trained)


def lines(recipe: Recipe, run: Run) -> list[str]:
    """The plan of one recipe, a fact per line."""
    rows = [*_data_rows(recipe, run), *_training_rows(recipe, run), ("files", _files(recipe, run))]
    base = recipe.train.base if recipe.train.base == BUILTIN_BASE else shown_path(recipe.train.base)
    rows.insert(0, ("base", f"{base}, {training_resolution(recipe, run.facts)} px"))
    return laid_out(rows)


def laid_out(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names beside what they are."""
    return [f"  {name:<15} {text}" for name, text in rows]


@dataclass(frozen=True)
class Gang:
    """Recipes whose LoRAs may be trained together; of one that may not, why."""

    names: Sequence[str]
    reason: str = ""


def gangs_to_make(graph: Graph, to_make: Collection[Node]) -> list[Gang]:
    """Of the LoRAs that are to be trained; nothing for a single one."""
    names = {node: node.name.partition(":")[0] for node in graph.nodes if node.kind == train.NAME and node in to_make}
    if len(names) < 2:
        return []
    result, told = [], set[Node]()
    found = gangs(graph, lambda node: train.gang_group(node) if node.kind == train.NAME else None)
    for node in names:
        mates = [mate for mate in found.get(node, [node]) if mate in names]
        if node not in told:
            key = train.alone_because(node.params)
            reason = f"{key} is not for several at once" if key else "no other has its base, parts and clip skip"
            result.append(Gang([names[mate] for mate in mates], "" if len(mates) > 1 else reason))
        told.update(mates)
    return result


def gang_line(gang: Gang, cut: Cut) -> str:
    """Which LoRAs go together, and why others do not."""
    if gang.reason:
        return f"trained alone: {gang.names[0]} ({gang.reason})"
    count = "one" if cut.sizes[0] == 1 else cut.sizes[0]
    size = f", {count} at a time: {cut.reason}" if cut.reason else ""
    return f"trained together: {', '.join(gang.names)} (as far as their steps have the same shapes{size})"


def total_lines(collection: RecipeCollection, runs: Mapping[str, Run], graph: Graph) -> list[str]:
    """What the recipes of a collection come to; `runs` are those of all recipes, by name."""
    names = [recipe.name for recipe in collection.recipes]
    steps = sum(runs[name].length.steps for name in names)
    used = [node for name in names for node in graph.of_recipe(name)]
    shared = f"{len(used) - len(set(used))} of {len(used)} nodes are those of another recipe"
    rows = [("recipes", f"{len(names)}, {steps} steps in all"), ("shared", shared)]
    return laid_out(rows)


def run_of(recipe: Recipe, read: Callable[[str], tuple[Size, bool]] = header) -> Run:
    """The figures of a recipe, from what `read` says of a picture file. Raises InputError for unusable folders."""
    facts = base_facts(recipe.train.base, recipe.where("train.base"), recipe.train.vae)
    train = recipe.train
    sources, classes = (
        [Set(spec, pictures_of(recipe, spec)) for spec in specs] for specs in (recipe.sources, recipe.regularisation)
    )
    split = recipe.validation.split
    sources = [
        Set(s.spec, s.pictures, arithmetic.held_out(len(s.pictures), split, recipe.validation_seed, number))
        for number, s in enumerate(sources)
    ]
    shown = [(picture, s.spec) for s in sources for picture in s.trained for _ in range(s.spec.repeats)]
    samples = len(shown)
    class_pictures = [(picture, s.spec) for s in classes for picture in s.pictures]
    order = arithmetic.regularisation_order([spec.repeats for _, spec in class_pictures], samples)
    shown += [class_pictures[index] for index in order]
    looks = _looks(recipe, facts, shown, read)
    accumulation = train.gradient_accumulation_steps
    length = arithmetic.run_length(looks.buckets.values(), train.batch_size, accumulation, train.epochs, train.steps)
    own = [recipe.held_out] if recipe.held_out else []
    listed = [(spec, pictures_of(recipe, spec)) for spec in own]
    never_trained = [Set(spec, found, frozenset(range(len(found)))) for spec, found in listed]
    unshown = [(picture, spec) for spec, found in listed for picture in found]
    beside = _looks(recipe, facts, unshown, read)
    looks.transparent.update(beside.transparent)
    looks.refused.update(beside.refused)
    return Run(facts, sources, classes, samples, order, looks, length, never_trained)


def _data_rows(recipe: Recipe, run: Run) -> list[tuple[str, str]]:
    rows = []
    for folder in run.sources:
        count, spec = len(folder.trained), folder.spec
        text = f"{shown_path(spec.path)}: {count} x {spec.repeats} repeats = {count * spec.repeats}"
        rows.append(("source", text + _held_out(folder) + _masked(spec)))
    for folder in run.regularisation:
        text = f"{shown_path(folder.spec.path)}: {len(folder.pictures)} pictures"
        rows.append(("regularisation", text + _drawn(folder.spec) + _masked(folder.spec)))
    if run.regularisation:
        rows.append(("", f"matched one to one: {len(run.order)} regularisation samples beside {run.samples}"))
    for folder in run.never_trained:
        rows.append(("held out", f"{shown_path(folder.spec.path)}: {count_of(len(folder.pictures), 'picture')}"))
    return rows + _untold(recipe, run) + [("unusable", text) for text in _unusable(recipe, run)]


def _held_out(folder: Set) -> str:
    return f", {len(folder.held_out)} of {len(folder.pictures)} held out" if folder.held_out else ""


def _drawn(spec: PictureSet) -> str:
    """What the base draws, if it does."""
    if spec.generate is None or spec.generate.transparent:
        return ""
    return f' that the base draws of "{spec.generate.prompt}"'


def _masked(spec: PictureSet) -> str:
    return ", loss masked by opacity" if spec.alpha_mask else ""


def _unusable(recipe: Recipe, run: Run) -> list[str]:
    """What a build would refuse, as far as it can be seen without reading every picture."""
    found = []
    if count := len(run.looks.transparent):
        found.append(f"{count_of(count, 'picture')} may have transparent parts, with no alpha in the recipe for them")
    if count := sum(map(len, (missing_captions(recipe, s.spec, s.pictures) for s in run.sets))):
        found.append(f"{count_of(count, 'picture')} without a caption, and no trigger words instead")
    return found


def missing_captions(recipe: Recipe, spec: PictureSet, found: Sequence[Picture]) -> list[Picture]:
    """The pictures that have neither a text file nor anything that stands for it."""
    return [] if final(recipe.rules(spec), spec.fallback) else _without_text(recipe, spec, found)


def no_captions(recipe: Recipe, spec: PictureSet, missing: Sequence[str], count: int) -> tuple[str, str]:
    """(cause, remedy) where the pictures at the paths `missing`, of a folder's `count`, have no caption."""
    instead = "caption = …" if spec.regularisation else "trigger words"
    return (
        f"{len(missing)} of {count} pictures have no caption, first {shown_path(missing[0])}",
        f"write {recipe.caption.extension} files beside them, or give them {instead}",
    )


def _without_text(recipe: Recipe, spec: PictureSet, found: Sequence[Picture]) -> list[Picture]:
    """The pictures that have no text file, if no tagger writes their captions."""
    if recipe.tagger.model is not None and spec.asks_tagger:
        return []
    return [picture for picture in found if picture.caption_path is None]


def _untold(recipe: Recipe, run: Run) -> list[tuple[str, str]]:
    """How many pictures to learn from have the recipe's words for a caption, and nothing of their own."""
    told = [s for s in run.sources if final(recipe.rules(s.spec), s.spec.fallback)]
    if not (count := sum(len(_without_text(recipe, s.spec, s.pictures)) for s in told)):
        return []
    of, verb = sum(len(s.pictures) for s in run.sources), "has" if count == 1 else "have"
    return [
        ("captions", f"{count} of {of} pictures {verb} no {recipe.caption.extension} file: the trigger words alone")
    ]


def _training_rows(recipe: Recipe, run: Run) -> list[tuple[str, str]]:
    train, network, length = recipe.train, recipe.network, run.length
    epochs = length.steps / length.steps_per_epoch
    views = " or ".join(_number(count) for count in sorted({spec.repeats * epochs for spec in recipe.sources}))
    targets = " and ".join({"unet": "U-Net", "text_encoder": "text encoder"}[target] for target in network.targets)
    warmup = arithmetic.warmup_steps(train.lr_warmup_steps, length.steps)
    together = train.gradient_accumulation_steps
    batches = f"{together} batches of {train.batch_size}" if together > 1 else f"batch {train.batch_size}"
    rows = [
        ("epoch", f"{length.steps_per_epoch} steps of {batches}, {run.samples + len(run.order)} samples"),
        ("run", f"{length.steps} steps = {count_of(epochs, 'epoch')}; a training picture is seen {views} times"),
        ("buckets", ", ".join(f"{size} ({count})" for size, count in sorted(run.looks.buckets.items()))),
        ("learning rate", f"U-Net {train.unet_lr:g}, text encoder {train.text_encoder_lr:g}"),
        ("", f"{train.lr_scheduler}, {warmup} steps of warm-up"),
        ("network", f"dim {network.dim}, alpha {network.alpha:g}, {targets}"),
    ]
    if train.flip_aug:
        rows.insert(1, ("", "pictures are mirrored half of the times"))
    if recipe.validation.split or run.never_trained:
        rows.append(("validation", _validation(recipe, run)))
    if recipe.sample.prompts:
        rows.append(("pictures", _drawn_pictures(recipe)))
    return rows


def _number(value: float) -> str:
    """At most two digits behind the point, none of them for nothing: `3`, `0.17`."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value >= 0.01 else "under 0.01"


def count_of(count: float, noun: str) -> str:
    """`1 epoch`, `2.5 epochs`."""
    number = _number(count) if count else "no"
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


def _drawn_pictures(recipe: Recipe) -> str:
    each = recipe.evaluate.count if recipe.judge else 1
    prompts, strengths = len(recipe.sample.prompts), sum(1 for strength in recipe.sample.strengths if strength)
    text = f"{each * prompts * (strengths + 1)} drawn: {count_of(prompts, 'prompt')}"
    text += f", without the LoRA and at {count_of(strengths, 'strength')}"
    if not recipe.evaluate.count:
        return text
    if recipe.judge is None:
        return f"{text}; no evaluation, as no tagger knows what this base draws: set evaluate.tagger"
    return f"{text}, {each} of each; evaluated"


def _validation(recipe: Recipe, run: Run) -> str:
    if recipe.validation.split and not any(folder.held_out for folder in run.sources):
        most = max(len(folder.pictures) for folder in run.sources)
        return arithmetic.nothing_held_out(recipe.validation.split, most)
    at = validation_timesteps(recipe.loss.min_timestep, recipe.loss.max_timestep)
    pictures = count_of(run.held_out, "picture")
    return f"{pictures} held out of training, measured at timesteps {', '.join(map(str, at))}"


def _files(recipe: Recipe, run: Run) -> str:
    saved = arithmetic.saved_epochs(run.length.steps, run.length.steps_per_epoch, recipe.train.save_every_n_epochs)
    numbered = [f"{recipe.name}-{n:06d}.safetensors" for n in saved]
    if len(numbered) > FILES_SHOWN:
        numbered[FILES_SHOWN - 1 : -1] = ["…"]
    return ", ".join([*numbered, f"{recipe.name}.safetensors"])


def _looks(
    recipe: Recipe,
    facts: BaseFacts,
    shown: Sequence[tuple[Picture, PictureSet]],
    read: Callable[[str], tuple[Size, bool]],
) -> Looks:
    """From the pictures' headers; the bucket "unusable" counts samples that a build would refuse."""
    settings = Bucketing(**bucketing(recipe, facts))  # type: ignore[arg-type]
    looks = Looks()
    side = settings.resolution
    if drawn := sum(spec.generate is not None for _, spec in shown):
        looks.buckets["x".join(map(str, settings.place(side, side)[1]))] += drawn
    shown = [(picture, spec) for picture, spec in shown if spec.generate is None]
    undecided = {picture.path for picture, spec in shown if spec.alpha is None}
    for path, count in Counter(picture.path for picture, _ in shown).items():
        try:
            size, transparent = read(path)
            bucket = settings.place(*size)[1]
        except Refused as refusal:
            looks.refused[path] = str(refusal)
            looks.buckets["unusable"] += count
            continue
        looks.buckets["x".join(map(str, bucket))] += count
        if transparent and path in undecided:
            looks.transparent.add(path)
    return looks
