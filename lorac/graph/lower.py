"""From checked recipes to the build graph.

    source ─▶ image ─┬─────────────▶ bucket ─┐
       │             └▶ latent ◀─ vae        ├─▶ schedule ─▶ train ─▶ export ─▶ sidecar, report
       ├────▶ caption ─▶ tokens ─────────────┘                 │        ▲
       └ tag ─────┘                                            │        │
    base ─▶ weights ─▶ unet, text ─────────────────────────────┴─▶ draw, validate ─▶ measure ─▶ evaluate ─▶ sidecar

Where a set of pictures is to be generated, `generate` stands in place of `source`.

A pure function of the recipe and the base's header. What enters a node's `params` is what its key contains: a setting
belongs there exactly if it can change the node's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

import msgspec

from lorac.digest import Value
from lorac.errors import InputError, Problem
from lorac.graph.collections import Parts, compare
from lorac.graph.draw import by_kind, kinds_of
from lorac.graph.nodes import Graph, Input, Node, Output, Take
from lorac.recipe.base import BaseFacts, base_facts, vae_path
from lorac.recipe.buckets import side_limits
from lorac.recipe.collection import Collection
from lorac.recipe.fields import BUILTIN_BASE, BUILTIN_TAGGER
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.rules_train import contradictions
from lorac.recipe.schema import PATHS, read_by
from lorac.recipe.sections.data import Generate
from lorac.recipe.sections.output import Prompt
from lorac.recipe.tagger import MODEL, TAGS, tagger_folder, thresholds

GENERATE = ("prompt", "negative", "steps", "cfg_scale", "sampler", "seed")
"""What a generated picture depends on, beside the base and its number."""


@dataclass(frozen=True)
class Pictures:
    """The per-picture nodes of one source or regularisation folder. `source` may be a `generate` node."""

    label: str
    folder: PictureSet
    regularisation: bool
    source: Node
    image: Node
    caption: Node
    tokens: Node
    latent: Node
    flipped: Node | None = None
    """The latents of the mirrored pictures."""


@dataclass(frozen=True)
class Drawn:
    """The nodes that draw the sample prompts: without the LoRA, and with it, prompts-major, at each other strength."""

    off: Node
    on: Node | None
    """Nothing where 0 is the only strength."""

    def inputs(self) -> dict[str, Input]:
        """Ports of whoever shows pictures."""
        return {"off": Input(self.off, "sheet"), **({"sheet": Input(self.on, "sheet")} if self.on else {})}


def lower(recipes: Sequence[Recipe], collections: Sequence[Collection] = ()) -> Graph:
    """One graph for all recipes; what they have in common is in it once. Raises InputError for an unusable base.

    `collections` are of some of the recipes, whose builds they compare.
    """
    graph = Graph()
    parts: dict[str, Parts] = {}
    for recipe in recipes:
        facts = base_facts(recipe.train.base, recipe.where("train.base"), recipe.train.vae)
        parts[recipe.name] = _Lowering(graph, recipe, facts).lower()
    for collection in collections:
        compare(graph, collection, parts)
    return graph


def training_resolution(recipe: Recipe, facts: BaseFacts) -> int:
    """Pixels: the recipe's, or else the base's own."""
    return recipe.train.resolution or facts.resolution


def bucketing(recipe: Recipe, facts: BaseFacts) -> dict[str, Value]:
    """The settings of the image kind's `Bucketing`; what the recipe leaves open follows from the base."""
    train, resolution = recipe.train, training_resolution(recipe, facts)
    step = train.bucket_reso_steps or facts.bucket_step
    smallest, largest = side_limits(resolution, step)
    return {
        "resolution": resolution,
        "enabled": train.enable_bucket,
        "smallest": train.min_bucket_reso or smallest,
        "largest": train.max_bucket_reso or largest,
        "step": step,
        "no_upscale": train.bucket_no_upscale,
        "list": train.bucket_list,
    }


class _Lowering:
    """The nodes of one recipe."""

    def __init__(self, graph: Graph, recipe: Recipe, facts: BaseFacts) -> None:
        self.graph, self.recipe, self.facts = graph, recipe, facts

    def lower(self) -> Parts:
        base = self._add("base", {}, hints={"path": str(self.facts.path)})
        weights = self._weights(base)
        sets = self._pictures(weights)
        held_out = self._held_out(sets, weights)
        schedule = self._schedule(sets, held_out)
        train = self._train(sets, schedule, weights)
        export = self._export(sets, schedule, train, base)
        drawn = self._draw(train, weights) if self.recipe.sample.prompts else None
        validate = self._validate(schedule, train, held_out) if held_out or self.recipe.validation.split else None
        evaluate = self._evaluate(sets, drawn, validate) if drawn and self.recipe.evaluate.count else None
        sidecar = self._sidecar(export, drawn, Input(evaluate, "figures") if evaluate else None)
        report = self._report(sets, schedule, train, drawn, validate, evaluate)
        name = self.recipe.name
        for file, value in [
            (f"{name}.safetensors", Input(export, "lora", Take.LAST)),
            (f"{name.replace('{', '{{').replace('}', '}}')}-{{n:06d}}.safetensors", Input(export, "lora")),
            (f"{name}.json", Input(sidecar, "json")),
            *([(f"{name}.png", Input(sidecar, "preview"))] if drawn else []),
            ("report.html", Input(report, "html")),
            *([("evaluation.json", Input(evaluate, "figures"))] if evaluate else []),
        ]:
            self.graph.outputs.append(Output(name, file, value, self.recipe.train.save_every_n_epochs or 1))
        on, off = (drawn.on, drawn.off) if drawn else (None, None)
        return Parts(self._about(sets), train, on, off, evaluate)

    def _add(
        self,
        kind: str,
        params: Mapping[str, Value],
        inputs: Mapping[str, Input] | None = None,
        *,
        label: str = "",
        items: tuple[Mapping[str, Value], ...] = (),
        hints: Mapping[str, Value] | None = None,
    ) -> Node:
        name = f"{self.recipe.name}:{kind}" + (f"[{label}]" if label else "")
        return self.graph.add(Node(name, kind, params, inputs or {}, items, hints or {}))

    def _weights(self, base: Node) -> Node:
        inputs, hints = {"base": Input(base, "file")}, {"base": str(self.facts.path)}
        if self.recipe.train.vae:
            hints["vae"] = str(vae_path(self.recipe.train.vae, self.recipe.where("train.vae")))
            inputs["vae"] = Input(self._add("base", {}, label="vae", hints={"path": hints["vae"]}), "file")
        return self._add("weights", {}, inputs, hints=hints)

    def _pictures(self, weights: Node) -> list[Pictures]:
        folders = [(folder, False) for folder in self.recipe.sources] + [(f, True) for f in self.recipe.regularisation]
        sets: list[Pictures] = []
        for folder, regularisation in folders:
            label = PurePath(folder.path).name
            if any(other.label == label for other in sets):
                label = f"{label}-{len(sets) + 1}"
            sets.append(self._picture_set(label, folder, regularisation, weights))
        return sets

    def _held_out(self, sets: Sequence[Pictures], weights: Node) -> Pictures | None:
        """The pictures of `validation.path`: the same nodes as others, which training does not read."""
        folder = self.recipe.held_out
        if folder is None:
            return None
        label = PurePath(folder.path).name
        taken = any(other.label == label for other in sets)
        return self._picture_set(f"{label}-held-out" if taken else label, folder, False, weights)

    def _picture_set(self, label: str, folder: PictureSet, regularisation: bool, weights: Node) -> Pictures:
        extension, found = self.recipe.caption.extension, self.recipe.rules(folder)
        # Only where used, so that other recipes' captions keep their keys.
        reading = {name: value for name in ("separator", "wildcard") if (value := getattr(found, name))}
        if folder.generate is None:
            source = self._add("source", {"extension": extension}, label=label, hints={"path": folder.path})
        else:
            source = self._generate(label, folder.generate, weights)
        image = self._add(
            "image",
            {"alpha": folder.alpha, "alpha_mask": folder.alpha_mask, "bucketing": bucketing(self.recipe, self.facts)},
            {"picture": Input(source, "picture", Take.EACH)},
            label=label,
        )
        levels, seen, found_in = self._tagger(label, folder, source)
        caption = self._add(
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
        tokens = self._add("tokens", reading, final, label=label, hints={"extension": extension})
        encoded = {"pixels": Input(image, "pixels", Take.EACH), "vae": Input(weights, "vae")}
        latent = self._add("latent", {}, encoded, label=label)
        flip = self.recipe.train.flip_aug and not folder.held_out
        flipped = self._add("latent", {"flip": True}, encoded, label=f"{label} mirrored") if flip else None
        return Pictures(label, folder, regularisation, source, image, caption, tokens, latent, flipped)

    def _generate(self, label: str, generate: Generate, weights: Node) -> Node:
        """Pictures of the training resolution; transparent ones need no base. How many there are is in no key."""
        side = training_resolution(self.recipe, self.facts)
        params: dict[str, Value] = {"width": side, "height": side}
        inputs: dict[str, Input] = {}
        if generate.transparent:
            params["transparent"] = True
        else:
            params |= {name: getattr(generate, name) for name in GENERATE}
            params |= {"clip_skip": self._clip_skip(), "prediction": self._prediction()}
            inputs = {part: Input(weights, part) for part in ("unet", "vae", "text")}
        items = tuple({"number": number} for number in range(generate.count))
        return self._add("generate", params, inputs, label=label, items=items)

    def _tagger(
        self, label: str, folder: PictureSet, source: Node
    ) -> tuple[dict[str, Value], dict[str, Input], dict[str, Value]]:
        """What a tagger adds to the caption node of a folder: (params, inputs, hints).

        Nothing without a tagger, and for a folder whose pictures need none (see `PictureSet.asks_tagger`).
        """
        settings = self.recipe.tagger
        if settings.model is None or not folder.asks_tagger:
            return {}, {}, {}
        inputs, hints = self._tagger_files(settings.model, settings.sha256)
        each = {port: Input(source, port, Take.EACH) for port in ("picture", "caption")}
        tag = self._add("tag", {}, {**each, **inputs}, label=label, hints=hints)
        seen = {"probabilities": Input(tag, "probabilities", Take.EACH), "tags": inputs["tags"]}
        return {"thresholds": dict(thresholds(settings))}, seen, {"tags": hints["tags"]}

    def _read_by(self, node: str) -> dict[str, Value]:
        """The recipe's values that a node kind reads as they stand, by section: what `schema.key(nodes=…)` says."""
        values: dict[str, dict[str, Value]] = {}
        for section, name in read_by(node):
            values.setdefault(section, {})[name] = msgspec.to_builtins(getattr(getattr(self.recipe, section), name))
        return dict(values)

    def _sets(self) -> int:
        """How many picture sets there are to train on; the held-out one has the number behind them."""
        return len(self.recipe.sources) + len(self.recipe.regularisation)

    def _schedule(self, sets: Sequence[Pictures], held_out: Pictures | None) -> Node:
        train, targets = self.recipe.train, self.recipe.network.targets
        params: dict[str, Value] = {
            "subsets": [{"repeats": s.folder.repeats, "regularisation": s.regularisation} for s in sets],
            **self._read_by("schedule"),
            "lr_unet": train.unet_lr if "unet" in targets else 0.0,
            "lr_text": train.text_encoder_lr if "text_encoder" in targets else 0.0,
        }
        if held_out or self.recipe.validation.split:
            params["validation_seed"] = self.recipe.validation_seed
        inputs: dict[str, Input] = {}
        for number, pictures in enumerate([*sets, *([held_out] if held_out else [])]):
            inputs[f"tokens.{number}"] = Input(pictures.tokens, "tokens")
            inputs[f"bucket.{number}"] = Input(pictures.image, "bucket")
        return self._add("schedule", params, inputs)

    def _train(self, sets: Sequence[Pictures], schedule: Node, weights: Node) -> Node:
        self._check_prediction()
        params: dict[str, Value] = {
            **self._read_by("train"),
            "targets": sorted(self.recipe.network.targets),
            "clip_skip": self._clip_skip(),
            "prediction": self._prediction(),
        }
        inputs = {
            "slice": Input(schedule, "slice", Take.EACH),
            "unet": Input(weights, "unet"),
            "text": Input(weights, "text"),
            **{f"latent.{number}": Input(pictures.latent, "latent") for number, pictures in enumerate(sets)},
            **{f"flipped.{number}": Input(s.flipped, "latent") for number, s in enumerate(sets) if s.flipped},
            **{f"mask.{number}": Input(s.image, "mask") for number, s in enumerate(sets) if s.folder.alpha_mask},
        }
        if self.recipe.network.weights is not None:
            start = self._add("start", {}, hints={"path": self.recipe.network.weights})
            inputs["start"] = Input(start, "file")
        return self._add("train", params, inputs)

    def _export(self, sets: Sequence[Pictures], schedule: Node, train: Node, base: Node) -> Node:
        recipe = self.recipe
        limits = bucketing(recipe, self.facts)
        params: dict[str, Value] = {
            "name": recipe.name,
            "sections": {**self._settings(), "output": self._output()},
            "folders": [{**self._folder(s), "trigger": s.folder.trigger} for s in sets],
            "resolution": limits["resolution"],
            "bucket_sides": (limits["smallest"], limits["largest"]),
            "clip_skip": self._clip_skip(),
            "prediction": self._prediction(),
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
        return self._add("export", params, inputs)

    def _draw(self, train: Node, weights: Node) -> Drawn:
        sample = self.recipe.sample
        resolution = training_resolution(self.recipe, self.facts)
        params: dict[str, Value] = {
            "count": max(1, self.recipe.evaluate.count),
            **self._read_by("draw"),
            "width": sample.width or resolution,
            "height": sample.height or resolution,
            "clip_skip": self._clip_skip(),
            "prediction": self._prediction(),
        }
        prompts, strengths = self._prompts(), self._strengths()
        inputs = {part: Input(weights, part) for part in ("unet", "vae", "text")}
        off = self._add("draw", params, inputs, label="off", items=tuple(prompts))
        if not strengths:
            return Drawn(off, None)
        items = tuple({**prompt, "strength": strength} for prompt in prompts for strength in strengths)
        return Drawn(off, self._add("draw", params, {"lora": Input(train, "lora", Take.LAST), **inputs}, items=items))

    def _sidecar(self, export: Node, drawn: Drawn | None, figures: Input | None = None) -> Node:
        """`figures`: those of the evaluation, if there is one."""
        params: dict[str, Value] = {**self._read_by("sidecar"), **({"strengths": self._strengths()} if drawn else {})}
        inputs = {"facts": Input(export, "facts", Take.LAST)}
        if drawn:
            inputs["off"] = Input(drawn.off, "first", Take.FIRST)
        if drawn and drawn.on:
            inputs["first"] = Input(drawn.on, "first")
        if figures:
            inputs["figures"] = figures
        return self._add("sidecar", params, inputs)

    def _evaluate(self, sets: Sequence[Pictures], drawn: Drawn, validate: Node | None) -> Node:
        """Raises InputError if there is no tagger that could look at the pictures."""
        recipe = self.recipe
        sources = [pictures for pictures in sets if not pictures.regularisation]
        params: dict[str, Value] = {
            **msgspec.to_builtins(
                {name: getattr(recipe.evaluate, name) for name in ("count", "threshold", "character")}
            ),
            "prompts": self._prompts(),
            "strengths": self._strengths(),
            "sources": [
                {"trigger": recipe.rules(s.folder).trigger, "exclude": recipe.rules(s.folder).exclude} for s in sources
            ],
            "preferred_weight": recipe.output.preferred_weight,
        }
        tagger, hints = self._judge()
        inputs = {"tags": tagger["tags"]}
        shown = [("off", recipe.evaluate.count, Input(drawn.off, "sheet", Take.EACH), "off")]
        if drawn.on:
            shown.append(("on", recipe.evaluate.count, Input(drawn.on, "sheet", Take.EACH), ""))
        for number, s in enumerate(sources):
            shown.append((str(number), 1, Input(s.image, "pixels", Take.EACH), s.label))
        for port, count, picture, label in shown:
            each = {"picture": picture, **tagger}
            measure = self._add("measure", {"count": count}, each, label=label, hints=hints)
            inputs |= {f"{output}.{port}": Input(measure, output) for output in ("seen", "features")}
        if validate:
            inputs |= {"losses": Input(validate, "losses", Take.LAST), "validation": validate.inputs["validation"]}
        return self._add("evaluate", params, inputs, hints={"tags": hints["tags"]})

    def _judge(self) -> tuple[dict[str, Input], dict[str, Value]]:
        """The tagger that looks at what was drawn: (inputs, hints)."""
        recipe = self.recipe
        model = recipe.evaluate.tagger or recipe.tagger.model
        if model is None and recipe.train.base != BUILTIN_BASE:
            remedy = "set evaluate.tagger to a folder with model.onnx and selected_tags.csv, or evaluate.count to 0"
            cause = "there is no tagger that knows what this base draws"
            raise InputError([Problem(recipe.where("evaluate.count"), cause, remedy)])
        sha256 = None if recipe.evaluate.tagger else recipe.tagger.sha256
        return self._tagger_files(model or BUILTIN_TAGGER, sha256)

    def _tagger_files(self, model: str, sha256: str | None) -> tuple[dict[str, Input], dict[str, Value]]:
        """(inputs, hints) of a node that runs a tagger."""
        at = tagger_folder(model)
        path, names = str(at / MODEL), str(at / TAGS)
        tagger = self._add("tagger", {}, hints={"path": path, "sha256": sha256})
        vocabulary = self._add("vocabulary", {}, hints={"path": names})
        return {"model": Input(tagger, "file"), "tags": Input(vocabulary, "file")}, {"model": path, "tags": names}

    def _prompts(self) -> list[dict[str, Value]]:
        """Prompt and negative of every row of the report's grid."""
        prompts = cast("tuple[Prompt, ...]", self.recipe.sample.prompts)  # loading leaves no plain strings
        return [{"prompt": prompt.prompt, "negative": prompt.negative} for prompt in prompts]

    def _validate(self, schedule: Node, train: Node, held_out: Pictures | None) -> Node:
        params: dict[str, Value] = {
            **self._read_by("validate"),
            "clip_skip": self._clip_skip(),
            "prediction": self._prediction(),
        }
        inputs = {
            "lora": Input(train, "lora", Take.EACH),
            "validation": Input(schedule, "validation", Take.FIRST),
            **{
                port: train.inputs[port] for port in train.inputs if port.startswith(("unet", "text", "latent", "mask"))
            },
            **({f"latent.{self._sets()}": Input(held_out.latent, "latent")} if held_out else {}),
        }
        return self._add("validate", params, inputs)

    def _report(
        self,
        sets: Sequence[Pictures],
        schedule: Node,
        train: Node,
        drawn: Drawn | None,
        validate: Node | None,
        evaluate: Node | None,
    ) -> Node:
        recipe = self.recipe
        measured: dict[str, Any] = msgspec.to_builtins(recipe.evaluate) if evaluate else {}
        if measured and measured["tagger"]:
            measured["tagger"] = PurePath(measured["tagger"]).name
        settings = {**self._settings(), "sample": msgspec.to_builtins(recipe.sample)}
        params: dict[str, Value] = {
            "recipe": recipe.file.name,
            "name": recipe.name,
            "comment": recipe.output.comment,
            "folders": [self._folder(pictures) for pictures in sets],
            "settings": {**settings, **({"evaluate": measured} if measured else {})},
            "sets": [self._written(pictures.folder) for pictures in sets],
            "prompts": self._prompts() if drawn else [],
            "strengths": [0.0, *self._strengths()],
            "count": max(1, recipe.evaluate.count),
        }
        inputs = {
            "losses": Input(train, "losses"),
            "slice": Input(schedule, "slice"),
            "summary": Input(schedule, "summary"),
            **(drawn.inputs() if drawn else {}),
            **({"validation": Input(validate, "losses")} if validate else {}),
            **({"figures": Input(evaluate, "figures")} if evaluate else {}),
        }
        for number, pictures in enumerate(sets):
            inputs[f"name.{number}"] = Input(pictures.source, "name")
            inputs[f"caption.{number}"] = Input(pictures.caption, "caption")
            inputs[f"raw.{number}"] = Input(pictures.caption, "raw")
            inputs[f"pixels.{number}"] = Input(pictures.image, "pixels")
        before = by_kind(self.graph.of_recipe(recipe.name))
        params["graph"] = {**before, "report": sorted(kinds_of(inputs.values()))}
        return self._add("report", params, inputs)

    def _written(self, folder: PictureSet) -> dict[str, Value]:
        """A picture set as the recipe writes it; a folder that is not below the recipe has only its name."""
        home = PurePath(self.recipe.file.absolute().parent)
        path = PurePath(folder.path)
        shown = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name
        place: dict[str, Value] = {"path": shown}
        if folder.generate:
            place = {"generate": msgspec.to_builtins(folder.generate)}
        words: dict[str, Value] = {"caption": folder.caption or ""}
        if not folder.regularisation:
            words = {"trigger": list(folder.trigger)}
        return {**place, "repeats": folder.repeats, **words, "alpha": folder.alpha, "alpha_mask": folder.alpha_mask}

    def _output(self) -> dict[str, Value]:
        """[output] as far as it is in the LoRA's file."""
        values: dict[str, Value] = msgspec.to_builtins(self.recipe.output)
        return {name: value for name, value in values.items() if ("output", name) not in read_by("sidecar")}

    def _about(self, sets: Sequence[Pictures]) -> dict[str, Value]:
        """What a page that compares recipes says of this one; strengths are those that are drawn with the LoRA."""
        return {
            "name": self.recipe.name,
            "comment": self.recipe.output.comment,
            "settings": {**self._settings(), "sample": msgspec.to_builtins(self.recipe.sample)},
            "folders": [self._folder(pictures) for pictures in sets],
            "prompts": list(self._prompts()),
            "strengths": list(self._strengths()),
        }

    def _settings(self) -> dict[str, Value]:
        """The recipe's sections that say how a LoRA is made; of a path only the name counts."""
        sections = ("caption", "tagger", "network", "train", "loss", "validation")
        values: dict[str, Any] = {name: msgspec.to_builtins(getattr(self.recipe, name)) for name in sections}
        for section, name in PATHS:
            if section in values and values[section][name] is not None:
                values[section][name] = PurePath(values[section][name]).name
        return values

    @staticmethod
    def _folder(pictures: Pictures) -> dict[str, Value]:
        folder = pictures.folder
        return {"name": pictures.label, "repeats": folder.repeats, "regularisation": pictures.regularisation}

    def _strengths(self) -> list[float]:
        """The recipe's, without 0, which is drawn always."""
        return [strength for strength in self.recipe.sample.strengths if strength]

    def _clip_skip(self) -> int:
        return self.recipe.train.clip_skip or self.facts.clip_skip

    def _prediction(self) -> dict[str, Value]:
        return dict(self.facts.prediction(self.recipe.loss))

    def _check_prediction(self) -> None:
        """Raises InputError for settings that do not go with what the base says of itself."""
        findings = contradictions(self.recipe.loss, **self.facts.prediction(self.recipe.loss))
        if problems := [Problem(self.recipe.where(".".join(map(str, f.path))), f.cause, f.remedy) for f in findings]:
            raise InputError(problems)
