"""The trained factors become the file that web UIs load, `NAME.safetensors`; `facts` is what `NAME.json` says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lorac.digest import Digest, Manifest
from lorac.engine.protocol import Failed, Made, Work
from lorac.graph.nodes import Shape
from lorac.recipe.arithmetic import epoch_count, regularisation_order, warmup_steps
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.sections.data import Caption, Tagger
from lorac.recipe.sections.loss import Loss
from lorac.recipe.sections.network import Network
from lorac.recipe.sections.output import Check, Evaluate, Output, Sample
from lorac.recipe.sections.train import Train, Validation
from lorac.wildcards import all_tags

if TYPE_CHECKING:
    from lorac.metadata import Facts, Folder
    from lorac.train.schedule import Summary
    from lorac.train.slices import Slice

NAME = "export"
VERSION = 6
SHAPE = Shape.EACH
POOL = "gpu"
OUTPUTS = ("lora", "facts")


def run(work: Work) -> Iterable[Made | Failed]:
    from lorac.export import facts_for_sidecar, lora_file
    from lorac.metadata import metadata
    from lorac.sd.safetensors import tensors_of
    from lorac.train.schedule import Summary
    from lorac.train.slices import decode

    recipe = recipe_of(work.params)
    folders = [_folder(work, number, folder) for number, folder in enumerate(work.params["folders"])]
    buckets = _buckets(work)
    for item in work.items:
        part = decode(work.read(item.inputs["slice"]))
        summary = msgspec.json.decode(work.read(item.inputs["summary"]), type=Summary)
        facts = _facts(work, recipe, part, summary, folders, buckets)
        state = tensors_of(work.open(item.inputs["lora"]))
        lora = lora_file(state, metadata(recipe, facts), recipe.output.precision)
        yield Made(item.index, {"lora": lora, "facts": facts_for_sidecar(recipe, facts)})


def recipe_of(params: Mapping[str, Any]) -> Recipe:
    """The recipe as far as its settings are in the node's params; paths are not."""
    sections = params["sections"]
    sets = [
        (
            folder["regularisation"],
            PictureSet(folder["name"], folder["repeats"], None, "", trigger=tuple(folder["trigger"])),
        )
        for folder in params["folders"]
    ]
    return Recipe(
        name=params["name"],
        file=Path(),
        sources=tuple(pictures for regularisation, pictures in sets if not regularisation),
        regularisation=tuple(pictures for regularisation, pictures in sets if regularisation),
        caption=msgspec.convert(sections["caption"], Caption),
        network=msgspec.convert(sections["network"], Network),
        train=msgspec.convert(sections["train"], Train),
        sample=Sample(),
        evaluate=Evaluate(),
        check=Check(),
        output=msgspec.convert(sections["output"], Output),
        tagger=msgspec.convert(sections["tagger"], Tagger),
        loss=msgspec.convert(sections["loss"], Loss),
        validation=msgspec.convert(sections["validation"], Validation),
    )


def _facts(
    work: Work,
    recipe: Recipe,
    part: Slice,
    summary: Summary,
    folders: list[Folder],
    buckets: Mapping[tuple[int, int], int],
) -> Facts:
    from lorac.metadata import Facts

    params = work.params
    hashed = Manifest()
    for name in sorted(params["sections"].keys() - {"output"}):
        hashed.field(name, params["sections"][name])
    hashed.field("folders", params["folders"])
    steps = part.first_step + len(part)
    return Facts(
        base_name=recipe.train.base,
        base_hash=work.shared["base"].hex(),
        resolution=params["resolution"],
        bucket_sides=tuple(params["bucket_sides"]),
        clip_skip=params["clip_skip"],
        warmup_steps=warmup_steps(recipe.train.lr_warmup_steps, summary.steps),
        summary=summary,
        epoch=epoch_count(steps, summary.steps_per_epoch),
        steps=steps,
        folders=folders,
        buckets=buckets,
        recipe_hash=hashed.key().hex(),
        **params["prediction"],
    )


def _folder(work: Work, number: int, folder: Mapping[str, Any]) -> Folder:
    from lorac.metadata import Folder

    about = work.params["sections"]["caption"]
    separator, wildcard = about["keep_tokens_separator"], about["enable_wildcard"]
    captions = work.columns[f"caption.{number}"]
    texts = work.read_many(captions)
    tags_of = {digest: all_tags(text.decode(), separator, wildcard) for digest, text in texts.items()}
    tags = Counter(tag for digest in captions for tag in tags_of[digest])
    return Folder(folder["name"], folder["repeats"], len(captions), folder["regularisation"], tags)


def _buckets(work: Work) -> dict[tuple[int, int], int]:
    """Samples per bucket in an epoch, repeats and matched regularisation pictures included, as kohya counts them."""
    shown: list[Digest] = []
    classes: list[tuple[Digest, int]] = []
    for number, folder in enumerate(work.params["folders"]):
        for digest in work.columns[f"bucket.{number}"]:
            if folder["regularisation"]:
                classes.append((digest, folder["repeats"]))
            else:
                shown += [digest] * folder["repeats"]
    order = regularisation_order([repeats for _, repeats in classes], len(shown))
    counts = Counter([*shown, *(classes[index][0] for index in order)])
    sizes = {digest: tuple(map(int, work.read(digest).split(b"x"))) for digest in counts}
    return {(sizes[digest][0], sizes[digest][1]): count for digest, count in counts.items()}
