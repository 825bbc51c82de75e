"""The nodes of a set of pictures: from files, or from what the base draws, to latents and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from lorac.digest import Value
from lorac.graph.nodes import Input, Node, Take
from lorac.graph.scope import Pictures, Scope, bucketing, training_resolution
from lorac.recipe.recipe import PictureSet
from lorac.recipe.sections.data import Generate
from lorac.recipe.tagger import thresholds

GENERATE = ("prompt", "negative", "steps", "cfg_scale", "sampler", "seed")
"""What a generated picture depends on, beside the base and its number."""


def sets_of(scope: Scope, weights: Node) -> list[Pictures]:
    folders = [(folder, False) for folder in scope.recipe.sources] + [(f, True) for f in scope.recipe.regularisation]
    sets: list[Pictures] = []
    for folder, regularisation in folders:
        label = PurePath(folder.path).name
        if any(other.label == label for other in sets):
            label = f"{label}-{len(sets) + 1}"
        sets.append(_picture_set(scope, label, folder, regularisation, weights))
    return sets


def held_out(scope: Scope, sets: Sequence[Pictures], weights: Node) -> Pictures | None:
    """The pictures of `validation.path`: the same nodes as others, which training does not read."""
    folder = scope.recipe.held_out
    if folder is None:
        return None
    label = PurePath(folder.path).name
    taken = any(other.label == label for other in sets)
    return _picture_set(scope, f"{label}-held-out" if taken else label, folder, False, weights)


def _picture_set(scope: Scope, label: str, folder: PictureSet, regularisation: bool, weights: Node) -> Pictures:
    extension, found = scope.recipe.caption.extension, scope.recipe.rules(folder)
    # Only where used, so that other recipes' captions keep their keys.
    reading = {name: value for name in ("separator", "wildcard") if (value := getattr(found, name))}
    if folder.generate is None:
        source = scope.add("source", {"extension": extension}, label=label, hints={"path": folder.path})
    else:
        source = _generate(scope, label, folder.generate, weights)
    image = scope.add(
        "image",
        {"alpha": folder.alpha, "alpha_mask": folder.alpha_mask, "bucketing": bucketing(scope.recipe, scope.facts)},
        {"picture": Input(source, "picture", Take.EACH)},
        label=label,
    )
    levels, seen, found_in = _tagger(scope, label, folder, source)
    caption = scope.add(
        "caption",
        {
            "trigger": found.trigger,
            "exclude": found.exclude,
            "replace": found.replace,
            "prefix": found.prefix,
            "suffix": found.suffix,
            "fallback": folder.fallback,
            **reading,
            **levels,
        },
        {"caption": Input(source, "caption", Take.EACH), **seen},
        label=label,
        hints={"extension": extension, **found_in},
    )
    final = {"caption": Input(caption, "caption", Take.EACH)}
    tokens = scope.add("tokens", reading, final, label=label, hints={"extension": extension})
    encoded = {"pixels": Input(image, "pixels", Take.EACH), "vae": Input(weights, "vae")}
    latent = scope.add("latent", {}, encoded, label=label)
    flip = scope.recipe.train.flip_aug and not folder.held_out
    flipped = scope.add("latent", {"flip": True}, encoded, label=f"{label} mirrored") if flip else None
    return Pictures(label, folder, regularisation, source, image, caption, tokens, latent, flipped)


def _generate(scope: Scope, label: str, generate: Generate, weights: Node) -> Node:
    """Pictures of the training resolution; transparent ones need no base. How many there are is in no key."""
    side = training_resolution(scope.recipe, scope.facts)
    params: dict[str, Value] = {"width": side, "height": side}
    inputs: dict[str, Input] = {}
    if generate.transparent:
        params["transparent"] = True
    else:
        params |= {name: getattr(generate, name) for name in GENERATE}
        params |= {"clip_skip": scope.clip_skip(), "prediction": scope.prediction()}
        inputs = {part: Input(weights, part) for part in ("unet", "vae", "text")}
    items = tuple({"number": number} for number in range(generate.count))
    return scope.add("generate", params, inputs, label=label, items=items)


def _tagger(
    scope: Scope, label: str, folder: PictureSet, source: Node
) -> tuple[dict[str, Value], dict[str, Input], dict[str, Value]]:
    """What a tagger adds to the caption node of a folder: (params, inputs, hints).

    Nothing without a tagger, and for a folder whose pictures need none (see `PictureSet.asks_tagger`).
    """
    settings = scope.recipe.tagger
    if settings.model is None or not folder.asks_tagger:
        return {}, {}, {}
    inputs, hints = scope.tagger_files(settings.model, settings.sha256)
    each = {port: Input(source, port, Take.EACH) for port in ("picture", "caption")}
    tag = scope.add("tag", {}, {**each, **inputs}, label=label, hints=hints)
    seen = {"probabilities": Input(tag, "probabilities", Take.EACH), "tags": inputs["tags"]}
    return {"thresholds": dict(thresholds(settings))}, seen, {"tags": hints["tags"]}
