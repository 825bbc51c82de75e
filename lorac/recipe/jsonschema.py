"""JSON Schema of recipes, for completion and checks in editors; made from the same structs that validate them."""

from __future__ import annotations

from typing import Any

import msgspec

from lorac.recipe.collection import Listing
from lorac.recipe.schema import SECTIONS, Document


def json_schema() -> dict[str, Any]:
    """The schema as plain values (JSON Schema 2020-12). TOML has no null, so a key without a default is just absent."""
    (recipe, collection), definitions = _without_null(msgspec.json.schema_components([Document, Listing]))
    keys = {
        f"{section}.{name}": {"type": "array", "items": field, "minItems": 1}
        for section, kind in SECTIONS.items()
        if section not in ("source", "regularisation")
        for name, field in definitions[kind.__name__]["properties"].items()
    }
    # The matrix may be written with dotted keys or as tables; only the former are completed.
    definitions["Document"]["properties"]["matrix"] |= {"type": "object", "properties": keys}
    for section in (name for name in SECTIONS if name not in ("source", "regularisation")):
        definitions["Document"]["properties"][section].pop("default", None)
    # `if` validates; taplo completes by `anyOf` alone, which must not say more than "one of both or something else".
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": {"required": ["recipes"]},
        "then": collection,
        "else": recipe,
        "anyOf": [recipe, collection, True],
        "$defs": definitions,
    }


def _without_null(schema: Any) -> Any:
    """The schema with `anyOf: [x, null], default: null` as `x`."""
    if isinstance(schema, list | tuple):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    clean = {name: _without_null(item) for name, item in schema.items() if not (name == "default" and item is None)}
    choices = clean.get("anyOf")
    if choices is not None and {"type": "null"} in choices:
        choices = [choice for choice in choices if choice != {"type": "null"}]
        del clean["anyOf"]
        clean = {**clean, **choices[0]} if len(choices) == 1 else {**clean, "anyOf": choices}
    return clean
