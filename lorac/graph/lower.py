"""From checked recipes to the build graph.

    source ─▶ image ─┬─────────────▶ bucket ─┐
       │             └▶ latent ◀─ vae        ├─▶ schedule ─▶ train ─▶ export ─▶ report
       ├────▶ caption ─▶ tokens ─────────────┘                 │        ▲
       └ tag ─────┘                                            │        │
    base ─▶ weights ─▶ unet, text ─────────────────────────────┴─▶ sample

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
from lorac.graph.nodes import Graph, Input, Node, Output, Take
from lorac.recipe.base import BaseFacts, base_facts
from lorac.recipe.buckets import side_limits
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.schema import PATHS, Prompt, read_by
from lorac.recipe.tagger import MODEL, TAGS, tagger_folder, thresholds


@dataclass(frozen=True)
class Pictures:
    """The per-picture nodes of one source or regularisation folder."""

    label: str
    folder: PictureSet
    regularisation: bool
    source: Node
    image: Node
    caption: Node
    tokens: Node
    latent: Node


def lower(recipes: Sequence[Recipe]) -> Graph:
    """One graph for all recipes; what they have in common is in it once. Raises InputError for an unusable base."""
    graph = Graph()
    for recipe in recipes:
        _Lowering(graph, recipe, base_facts(recipe.train.base, recipe.where("train.base"))).lower()
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
    }


class _Lowering:
    """The nodes of one recipe."""

    def __init__(self, graph: Graph, recipe: Recipe, facts: BaseFacts) -> None:
        self.graph, self.recipe, self.facts = graph, recipe, facts

    def lower(self) -> None:
        base = self._add("base", {}, hints={"path": str(self.facts.path)})
        weights = self._add("weights", {}, {"file": Input(base, "file")}, hints={"path": str(self.facts.path)})
        sets = self._pictures(Input(weights, "vae"))
        schedule = self._schedule(sets)
        train = self._train(sets, schedule, weights)
        export = self._export(sets, schedule, train, base)
        sample = self._sample(train, weights) if self.recipe.sample.prompts else None
        report = self._report(sets, schedule, train, sample)
        name = self.recipe.name
        for file, value in [
            (f"{name}.safetensors", Input(export, "lora", Take.LAST)),
            (f"{name.replace('{', '{{').replace('}', '}}')}-{{n:06d}}.safetensors", Input(export, "lora")),
            (f"{name}.json", Input(export, "sidecar", Take.LAST)),
            *([(f"{name}.png", Input(sample, "preview", Take.FIRST))] if sample else []),
            ("report.html", Input(report, "html")),
        ]:
            self.graph.outputs.append(Output(name, file, value, self.recipe.train.save_every_n_epochs or 1))

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

    def _pictures(self, vae: Input) -> list[Pictures]:
        folders = [(folder, False) for folder in self.recipe.sources] + [(f, True) for f in self.recipe.regularisation]
        sets: list[Pictures] = []
        for folder, regularisation in folders:
            label = PurePath(folder.path).name
            if any(other.label == label for other in sets):
                label = f"{label}-{len(sets) + 1}"
            sets.append(self._picture_set(label, folder, regularisation, vae))
        return sets

    def _picture_set(self, label: str, folder: PictureSet, regularisation: bool, vae: Input) -> Pictures:
        extension, found = self.recipe.caption.extension, self.recipe.rules(folder)
        source = self._add("source", {"extension": extension}, label=label, hints={"path": folder.path})
        image = self._add(
            "image",
            {"alpha": folder.alpha, "bucketing": bucketing(self.recipe, self.facts)},
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
                "fallback": folder.caption or "",
                **levels,
            },
            {"caption": Input(source, "caption", Take.EACH), **seen},
            label=label,
            hints={"extension": extension, **found_in},
        )
        tokens = self._add("tokens", {}, {"caption": Input(caption, "caption", Take.EACH)}, label=label)
        pixels = Input(image, "pixels", Take.EACH)
        latent = self._add("latent", {}, {"pixels": pixels, "vae": vae}, label=label)
        return Pictures(label, folder, regularisation, source, image, caption, tokens, latent)

    def _tagger(
        self, label: str, folder: PictureSet, source: Node
    ) -> tuple[dict[str, Value], dict[str, Input], dict[str, Value]]:
        """What a tagger adds to the caption node of a folder: (params, inputs, hints).

        Nothing without a tagger, and for a folder whose pictures without a text have a caption in the recipe.
        """
        settings = self.recipe.tagger
        if settings.model is None or folder.caption:
            return {}, {}, {}
        at = tagger_folder(settings.model)
        model, names = str(at / MODEL), str(at / TAGS)
        tagger = self._add("tagger", {}, hints={"path": model, "sha256": settings.sha256})
        vocabulary = self._add("vocabulary", {}, hints={"path": names})
        shared = {"tags": Input(vocabulary, "file")}
        each = {port: Input(source, port, Take.EACH) for port in ("picture", "caption")}
        tag = self._add(
            "tag",
            {},
            {**each, "model": Input(tagger, "file"), **shared},
            label=label,
            hints={"model": model, "tags": names},
        )
        seen = {"probabilities": Input(tag, "probabilities", Take.EACH), **shared}
        return {"thresholds": dict(thresholds(settings))}, seen, {"tags": names}

    def _read_by(self, node: str) -> dict[str, Value]:
        """The recipe's values that a node kind reads as they stand, by section: what `schema.key(nodes=…)` says."""
        values: dict[str, dict[str, Value]] = {}
        for section, name in read_by(node):
            values.setdefault(section, {})[name] = msgspec.to_builtins(getattr(getattr(self.recipe, section), name))
        return dict(values)

    def _schedule(self, sets: Sequence[Pictures]) -> Node:
        train, targets = self.recipe.train, self.recipe.network.targets
        params: dict[str, Value] = {
            "subsets": [{"repeats": s.folder.repeats, "regularisation": s.regularisation} for s in sets],
            **self._read_by("schedule"),
            "lr_unet": train.unet_lr if "unet" in targets else 0.0,
            "lr_text": train.text_encoder_lr if "text_encoder" in targets else 0.0,
        }
        inputs: dict[str, Input] = {}
        for number, pictures in enumerate(sets):
            inputs[f"tokens.{number}"] = Input(pictures.tokens, "tokens")
            inputs[f"bucket.{number}"] = Input(pictures.image, "bucket")
        return self._add("schedule", params, inputs)

    def _train(self, sets: Sequence[Pictures], schedule: Node, weights: Node) -> Node:
        params: dict[str, Value] = {
            **self._read_by("train"),
            "targets": sorted(self.recipe.network.targets),
            "clip_skip": self._clip_skip(),
        }
        inputs = {
            "slice": Input(schedule, "slice", Take.EACH),
            "unet": Input(weights, "unet"),
            "text": Input(weights, "text"),
            **{f"latent.{number}": Input(pictures.latent, "latent") for number, pictures in enumerate(sets)},
        }
        return self._add("train", params, inputs)

    def _export(self, sets: Sequence[Pictures], schedule: Node, train: Node, base: Node) -> Node:
        recipe = self.recipe
        limits = bucketing(recipe, self.facts)
        params: dict[str, Value] = {
            "name": recipe.name,
            "sections": {**self._settings(), "output": msgspec.to_builtins(recipe.output)},
            "folders": [{**self._folder(s), "trigger": s.folder.trigger} for s in sets],
            "resolution": limits["resolution"],
            "bucket_sides": (limits["smallest"], limits["largest"]),
            "clip_skip": self._clip_skip(),
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

    def _sample(self, train: Node, weights: Node) -> Node:
        sample = self.recipe.sample
        resolution = training_resolution(self.recipe, self.facts)
        params: dict[str, Value] = {
            "strengths": self._strengths(),
            **self._read_by("sample"),
            "width": sample.width or resolution,
            "height": sample.height or resolution,
            "clip_skip": self._clip_skip(),
            "network": {"dim": self.recipe.network.dim, "alpha": self.recipe.network.alpha},
            "targets": sorted(self.recipe.network.targets),
        }
        inputs = {
            "lora": Input(train, "lora", Take.LAST),
            **{part: Input(weights, part) for part in ("unet", "vae", "text")},
        }
        return self._add("sample", params, inputs, items=tuple(self._prompts()))

    def _prompts(self) -> list[dict[str, Value]]:
        """Prompt and negative of every row of the sample grid."""
        prompts = cast("tuple[Prompt, ...]", self.recipe.sample.prompts)  # loading leaves no plain strings
        return [{"prompt": prompt.prompt, "negative": prompt.negative} for prompt in prompts]

    def _report(self, sets: Sequence[Pictures], schedule: Node, train: Node, sample: Node | None) -> Node:
        recipe = self.recipe
        params: dict[str, Value] = {
            "recipe": recipe.file.name,
            "name": recipe.name,
            "comment": recipe.output.comment,
            "folders": [self._folder(pictures) for pictures in sets],
            "settings": {**self._settings(), "sample": msgspec.to_builtins(recipe.sample)},
            "prompts": self._prompts() if sample else [],
            "strengths": self._strengths(),
        }
        inputs = {
            "losses": Input(train, "losses"),
            "slice": Input(schedule, "slice"),
            "summary": Input(schedule, "summary"),
            **({"row": Input(sample, "row")} if sample else {}),
        }
        for number, pictures in enumerate(sets):
            inputs[f"name.{number}"] = Input(pictures.source, "name")
            inputs[f"caption.{number}"] = Input(pictures.caption, "caption")
            inputs[f"pixels.{number}"] = Input(pictures.image, "pixels")
        return self._add("report", params, inputs)

    def _settings(self) -> dict[str, Value]:
        """The recipe's sections that say how a LoRA is made; of a path only the name counts."""
        sections = ("caption", "tagger", "network", "train", "loss", "validation")
        values: dict[str, Any] = {name: msgspec.to_builtins(getattr(self.recipe, name)) for name in sections}
        for section, name in PATHS:
            if values[section][name] is not None:
                values[section][name] = PurePath(values[section][name]).name
        return values

    @staticmethod
    def _folder(pictures: Pictures) -> dict[str, Value]:
        folder = pictures.folder
        return {"name": pictures.label, "repeats": folder.repeats, "regularisation": pictures.regularisation}

    def _strengths(self) -> list[Value]:
        """The columns of the sample grid: off, then the recipe's."""
        return [0.0, *(strength for strength in self.recipe.sample.strengths if strength)]

    def _clip_skip(self) -> int:
        return self.recipe.train.clip_skip or self.facts.clip_skip
