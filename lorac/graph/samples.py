"""The nodes of what is drawn with the LoRA and without, of what a tagger sees in it, and of the file for web UIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lorac.digest import Value
from lorac.graph.nodes import Input, Node, Take
from lorac.graph.scope import Pictures, Scope, training_resolution


@dataclass(frozen=True)
class Drawn:
    """The nodes that draw the sample prompts: without the LoRA, and with it, prompts-major, at each other strength."""

    off: Node
    on: Node | None
    """Nothing where 0 is the only strength."""

    def inputs(self) -> dict[str, Input]:
        """Ports of whoever shows pictures."""
        return {"off": Input(self.off, "sheet"), **({"sheet": Input(self.on, "sheet")} if self.on else {})}


def draw(scope: Scope, train: Node, weights: Node) -> Drawn:
    sample = scope.recipe.sample
    resolution = training_resolution(scope.recipe, scope.facts)
    params: dict[str, Value] = {
        "count": scope.pictures_each(),
        **scope.read_by("draw"),
        "width": sample.width or resolution,
        "height": sample.height or resolution,
        "clip_skip": scope.clip_skip(),
        "prediction": scope.prediction(),
    }
    prompts, strengths = scope.prompts(), scope.strengths()
    inputs = {part: Input(weights, part) for part in ("unet", "vae", "text")}
    off = scope.add("draw", params, inputs, label="off", items=tuple(prompts))
    if not strengths:
        return Drawn(off, None)
    items = tuple({**prompt, "strength": strength} for prompt in prompts for strength in strengths)
    return Drawn(off, scope.add("draw", params, {"lora": Input(train, "lora", Take.LAST), **inputs}, items=items))


def sidecar(scope: Scope, export: Node, drawn: Drawn | None, figures: Input | None = None) -> Node:
    """`figures`: those of the evaluation, if there is one."""
    params: dict[str, Value] = {**scope.read_by("sidecar"), **({"strengths": scope.strengths()} if drawn else {})}
    inputs = {"facts": Input(export, "facts", Take.LAST)}
    if drawn:
        inputs["off"] = Input(drawn.off, "first", Take.FIRST)
    if drawn and drawn.on:
        inputs["first"] = Input(drawn.on, "first")
    if figures:
        inputs["figures"] = figures
    return scope.add("sidecar", params, inputs)


def evaluate(scope: Scope, judge: str, sets: Sequence[Pictures], drawn: Drawn, validate: Node | None) -> Node:
    """`judge`: the tagger that looks at the pictures."""
    recipe = scope.recipe
    sources = [pictures for pictures in sets if not pictures.regularisation]
    params: dict[str, Value] = {
        **msgspec.to_builtins({name: getattr(recipe.evaluate, name) for name in ("count", "threshold", "character")}),
        "prompts": scope.prompts(),
        "strengths": scope.strengths(),
        "sources": [
            {"trigger": recipe.rules(s.folder).trigger, "exclude": recipe.rules(s.folder).exclude} for s in sources
        ],
        "preferred_weight": recipe.output.preferred_weight,
    }
    tagger, hints = scope.tagger_files(judge, None if recipe.evaluate.tagger else recipe.tagger.sha256)
    inputs = {"tags": tagger["tags"]}
    shown = [("off", recipe.evaluate.count, Input(drawn.off, "sheet", Take.EACH), "off")]
    if drawn.on:
        shown.append(("on", recipe.evaluate.count, Input(drawn.on, "sheet", Take.EACH), ""))
    for number, s in enumerate(sources):
        shown.append((str(number), 1, Input(s.image, "pixels", Take.EACH), s.label))
    for port, count, picture, label in shown:
        each = {"picture": picture, **tagger}
        measure = scope.add("measure", {"count": count}, each, label=label, hints=hints)
        inputs |= {f"{output}.{port}": Input(measure, output) for output in ("seen", "features")}
    if validate:
        inputs |= {"losses": Input(validate, "losses", Take.LAST), "validation": validate.inputs["validation"]}
    return scope.add("evaluate", params, inputs, hints={"tags": hints["tags"]})
