"""What the parts of lowering share: a recipe with its graph and its base, and the settings that several nodes read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec

from lorac.digest import Value
from lorac.graph.nodes import Graph, Input, Node
from lorac.recipe.base import BaseFacts
from lorac.recipe.buckets import side_limits
from lorac.recipe.recipe import PictureSet, Recipe
from lorac.recipe.schema import PATHS, read_by
from lorac.recipe.tagger import MODEL, TAGS, tagger_folder


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


class Scope:
    """One recipe on its way into a graph: what its nodes have in common."""

    def __init__(self, graph: Graph, recipe: Recipe, facts: BaseFacts) -> None:
        self.graph, self.recipe, self.facts = graph, recipe, facts

    def add(
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

    def read_by(self, node: str) -> dict[str, Value]:
        """The recipe's values that a node kind reads as they stand, by section: what `schema.key(nodes=…)` says."""
        values: dict[str, dict[str, Value]] = {}
        for section, name in read_by(node):
            values.setdefault(section, {})[name] = msgspec.to_builtins(getattr(getattr(self.recipe, section), name))
        return dict(values)

    def prompts(self) -> list[dict[str, Value]]:
        """Prompt and negative of every row of the report's grid."""
        return [{"prompt": prompt.prompt, "negative": prompt.negative} for prompt in self.recipe.prompts]

    def strengths(self) -> list[float]:
        """The recipe's, without 0, which is drawn always."""
        return [strength for strength in self.recipe.sample.strengths if strength]

    def pictures_each(self) -> int:
        """How many pictures of a prompt are drawn at each strength."""
        return self.recipe.evaluate.count if self.recipe.judge else 1

    def clip_skip(self) -> int:
        return self.recipe.train.clip_skip or self.facts.clip_skip

    def prediction(self) -> dict[str, Value]:
        return dict(self.facts.prediction(self.recipe.loss))

    def settings(self) -> dict[str, Value]:
        """The recipe's sections that say how a LoRA is made; of a path only the name counts."""
        sections = ("caption", "tagger", "network", "train", "loss", "validation")
        values: dict[str, Any] = {name: msgspec.to_builtins(getattr(self.recipe, name)) for name in sections}
        for section, name in PATHS:
            if section in values and values[section][name] is not None:
                values[section][name] = PurePath(values[section][name]).name
        return values

    def tagger_files(self, model: str, sha256: str | None) -> tuple[dict[str, Input], dict[str, Value]]:
        """(inputs, hints) of a node that runs a tagger."""
        at = tagger_folder(model)
        path, names = str(at / MODEL), str(at / TAGS)
        tagger = self.add("tagger", {}, hints={"path": path, "sha256": sha256})
        vocabulary = self.add("vocabulary", {}, hints={"path": names})
        return {"model": Input(tagger, "file"), "tags": Input(vocabulary, "file")}, {"model": path, "tags": names}


def folder_facts(pictures: Pictures) -> dict[str, Value]:
    folder = pictures.folder
    return {"name": pictures.label, "repeats": folder.repeats, "regularisation": pictures.regularisation}
