"""The JSON Schema: the committed file is what the definitions give, and editors find every key explained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli

from lorac.recipe.collection import Listing
from lorac.recipe.fields import Section
from lorac.recipe.jsonschema import json_schema
from lorac.recipe.schema import SECTIONS, Document
from lorac.recipe.sections.output import Prompt

RECIPES = Path(__file__).parent.parent / "recipes"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def test_the_committed_schema_is_current() -> None:
    committed = (RECIPES / "lorac.schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(json_schema(), indent=2) + "\n", "run: lorac schema > recipes/lorac.schema.json"


def test_every_key_is_described_and_no_other_is_allowed() -> None:
    definitions = json_schema()["$defs"]
    sections: list[type[Section]] = [*SECTIONS.values(), Document, Prompt, Listing]
    assert set(definitions) == {kind.__name__ for kind in sections}
    for name, definition in definitions.items():
        assert definition["additionalProperties"] is False, name
        for key, schema in definition["properties"].items():
            assert schema.get("description") or "$ref" in schema, f"{name}.{key}"
            assert "null" not in json.dumps(schema), f"{name}.{key}"


@pytest.mark.parametrize("kind", [*SECTIONS.values(), Document])
def test_defaults_are_valid(kind: type[Section]) -> None:
    for field in msgspec.structs.fields(kind):
        if not field.required:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            msgspec.convert(msgspec.to_builtins(default), field.type)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_recipes_name_the_schema_and_follow_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#:schema lorac.schema.json\n")
    assert list(violations(tomli.loads(text), json_schema(), json_schema())) == []


def test_the_validator_of_these_tests_sees_mistakes() -> None:
    data = {
        "train": {"epochs": 0, "seeed": 1, "base": 3, "lr_scheduler": "x", "betas": [1.0, 0.5, 0.1]},
        "source": [{}],
    }
    assert len(list(violations(data, json_schema(), json_schema()))) == 7


def test_a_file_with_recipes_is_judged_as_a_collection() -> None:
    def mistakes(data: dict[str, Any]) -> list[str]:
        return list(violations(data, json_schema(), json_schema()))

    assert mistakes({"recipes": ["a.toml"], "name": "all", "title": "All", "comment": "of them"}) == []
    assert mistakes({"recipes": [], "train": {}}) == ["$.recipes: wrong length", "$: train is unknown"]
    assert mistakes({"title": "All"}) == ["$: title is unknown"]


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> Iterator[str]:
    """What JSON Schema 2020-12 has against `value`: the part of it that our schema uses."""
    if "$ref" in schema:
        yield from violations(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    if "if" in schema:
        other = list(violations(value, schema["if"], root, at))
        yield from violations(value, schema["else" if other else "then"], root, at)
    if (
        "anyOf" in schema
        and True not in schema["anyOf"]
        and all(list(violations(value, choice, root, at)) for choice in schema["anyOf"])
    ):
        yield f"{at}: fits none"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: not in the enumeration"
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at}: not of type {kind}"
        return
    if isinstance(value, dict):
        yield from (f"{at}: lacks {key}" for key in schema.get("required", ()) if key not in value)
        for key, inner in value.items():
            own = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            if own is False:
                yield f"{at}: {key} is unknown"
            else:
                yield from violations(inner, own if isinstance(own, dict) else {}, root, f"{at}.{key}")
    elif isinstance(value, list):
        fixed = schema.get("prefixItems", [])
        if len(value) < schema.get("minItems", 0) or len(value) > schema.get("maxItems", math.inf):
            yield f"{at}: wrong length"
        for i, inner in enumerate(value):
            own = fixed[i] if i < len(fixed) else schema.get("items", {})
            yield from violations(inner, own if isinstance(own, dict) else {}, root, f"{at}[{i}]")
    elif isinstance(value, str):
        if len(value) < schema.get("minLength", 0) or not re.search(schema.get("pattern", ""), value):
            yield f"{at}: does not match"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        limits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        strict = value > schema.get("exclusiveMinimum", -math.inf) and value < schema.get("exclusiveMaximum", math.inf)
        if not (limits and strict) or value % schema.get("multipleOf", 1 if isinstance(value, int) else value or 1):
            yield f"{at}: out of range"
