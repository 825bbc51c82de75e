"""The nodes of the training: the base, the schedule, the chain of epochs, held-out losses and the file."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lorac.digest import Value
from lorac.errors import InputError, Problem
from lorac.graph.nodes import Input, Node, Take
from lorac.graph.scope import Pictures, Scope, bucketing, folder_facts
from lorac.recipe.base import vae_path
from lorac.recipe.rules_train import contradictions
from lorac.recipe.schema import read_by


def weights(scope: Scope, base: Node) -> Node:
    inputs, hints = {"base": Input(base, "file")}, {"base": str(scope.facts.path)}
    if scope.recipe.train.vae:
        hints["vae"] = str(vae_path(scope.recipe.train.vae, scope.recipe.where("train.vae")))
        inputs["vae"] = Input(scope.add("base", {}, label="vae", hints={"path": hints["vae"]}), "file")
    return scope.add("weights", {}, inputs, hints=hints)


def schedule(scope: Scope, sets: Sequence[Pictures], held_out: Pictures | None) -> Node:
    train, targets = scope.recipe.train, scope.recipe.network.targets
    params: dict[str, Value] = {
        "subsets": [{"repeats": s.folder.repeats, "regularisation": s.regularisation} for s in sets],
        **scope.read_by("schedule"),
        "lr_unet": train.unet_lr if "unet" in targets else 0.0,
        "lr_text": train.text_encoder_lr if "text_encoder" in targets else 0.0,
    }
    if held_out or scope.recipe.validation.split:
        params["validation_seed"] = scope.recipe.validation_seed
    inputs: dict[str, Input] = {}
    for number, pictures in enumerate([*sets, *([held_out] if held_out else [])]):
        inputs[f"tokens.{number}"] = Input(pictures.tokens, "tokens")
        inputs[f"bucket.{number}"] = Input(pictures.image, "bucket")
    return scope.add("schedule", params, inputs)


def train(scope: Scope, sets: Sequence[Pictures], schedule: Node, weights: Node) -> Node:
    _check_prediction(scope)
    params: dict[str, Value] = {
        **scope.read_by("train"),
        "targets": sorted(scope.recipe.network.targets),
        "clip_skip": scope.clip_skip(),
        "prediction": scope.prediction(),
    }
    attention: str = scope.recipe.train.attention
    if scope.recipe.train.deterministic:  # what was made without promises nothing; and then the kernel decides the bits
        attention = "sdpa" if attention == "auto" else attention
        params["deterministic"] = attention
    inputs = {
        "slice": Input(schedule, "slice", Take.EACH),
        "unet": Input(weights, "unet"),
        "text": Input(weights, "text"),
        **{f"latent.{number}": Input(pictures.latent, "latent") for number, pictures in enumerate(sets)},
        **{f"flipped.{number}": Input(s.flipped, "latent") for number, s in enumerate(sets) if s.flipped},
        **{f"mask.{number}": Input(s.image, "mask") for number, s in enumerate(sets) if s.folder.alpha_mask},
    }
    if scope.recipe.network.weights is not None:
        start = scope.add("start", {}, hints={"path": scope.recipe.network.weights})
        inputs["start"] = Input(start, "file")
    hints: dict[str, Value] = {"attention": attention}
    if scope.recipe.train.compile:
        hints["compile"] = True
    return scope.add("train", params, inputs, hints=hints)


def _check_prediction(scope: Scope) -> None:
    """Raises InputError for settings that do not go with what the base says of itself."""
    findings = contradictions(scope.recipe.loss, **scope.facts.prediction(scope.recipe.loss))
    if problems := [Problem(scope.recipe.where(".".join(map(str, f.path))), f.cause, f.remedy) for f in findings]:
        raise InputError(problems)


def validate(scope: Scope, schedule: Node, train: Node, held_out: Pictures | None) -> Node:
    behind = len(scope.recipe.sources) + len(scope.recipe.regularisation)  # the number of the held-out set
    params: dict[str, Value] = {
        **scope.read_by("validate"),
        "clip_skip": scope.clip_skip(),
        "prediction": scope.prediction(),
    }
    inputs = {
        "lora": Input(train, "lora", Take.EACH),
        "validation": Input(schedule, "validation", Take.FIRST),
        **{port: train.inputs[port] for port in train.inputs if port.startswith(("unet", "text", "latent", "mask"))},
        **({f"latent.{behind}": Input(held_out.latent, "latent")} if held_out else {}),
    }
    return scope.add("validate", params, inputs)


def export(scope: Scope, sets: Sequence[Pictures], schedule: Node, train: Node, base: Node) -> Node:
    recipe = scope.recipe
    limits = bucketing(recipe, scope.facts)
    params: dict[str, Value] = {
        "name": recipe.name,
        "sections": {**scope.settings(), "output": _output(scope)},
        "folders": [{**folder_facts(s), "trigger": s.folder.trigger} for s in sets],
        "resolution": limits["resolution"],
        "bucket_sides": (limits["smallest"], limits["largest"]),
        "clip_skip": scope.clip_skip(),
        "prediction": scope.prediction(),
    }
    inputs = {
        "base": Input(base, "file"),
        "lora": Input(train, "lora", Take.EACH),
        "slice": Input(schedule, "slice", Take.EACH),
        "summary": Input(schedule, "summary", Take.EACH),
    }
    for number, pictures in enumerate(sets):
        inputs[f"caption.{number}"] = Input(pictures.caption, "caption")
        inputs[f"bucket.{number}"] = Input(pictures.image, "bucket")
    return scope.add("export", params, inputs)


def _output(scope: Scope) -> dict[str, Value]:
    """[output] as far as it is in the LoRA's file."""
    values: dict[str, Value] = msgspec.to_builtins(scope.recipe.output)
    return {name: value for name, value in values.items() if ("output", name) not in read_by("sidecar")}
