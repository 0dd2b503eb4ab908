"""The JSON Schemas (draft 2020-12) of recipe files, of the bases they extend, and of other models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, cast

from pydantic import BaseModel, JsonValue

from llava_recipes.recipe.schema import Frozen, Recipe

Schema: TypeAlias = dict[str, JsonValue]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: Schema = {
    "title": "Variable",
    "description": "A value from `vars`, written `${name}`; it keeps its type.",
    "type": "string",
    "pattern": r"^\$\{[^{}]+\}$",
}
_TEXT_WITH_VARIABLES: Schema = {
    "title": "String with variables",
    "description": "A string with `${name}`, filled in from `vars`.",
    "type": "string",
    "pattern": r"\$\{[^{}]+\}",
}
_ABOUT = ("title", "description", "default", "examples")
_NOT_VARIABLE = {("Recipe", key) for key in ("version", "extends", "env", "vars")}


def recipe_schema() -> Schema:
    """The schema of a recipe file, in which every value may also be a variable `${name}`.

    A file that extends others may leave out any key; one that extends none has all required keys.
    """
    schema, needed = _parts_schema("llava_recipes recipe")
    return {**schema, "if": {"required": ["extends"]}, "else": needed}


def base_schema() -> Schema:
    """The schema of a file that others extend: the same keys, none of them required."""
    schema, _ = _parts_schema("llava_recipes base")
    return schema


def _parts_schema(title: str) -> tuple[Schema, Schema]:
    """The schema of one of several files that make a recipe, and of the keys that all must have together."""
    schema = value_schema(Recipe, title=title)
    definitions = _inner(schema, "$defs")
    needed = _loosen(schema, definitions, {})
    for name, definition in {**definitions, "Recipe": schema}.items():
        if "properties" not in cast(Schema, definition):
            continue
        properties = _inner(cast(Schema, definition), "properties")
        for key, value in properties.items():
            if (name, key) not in _NOT_VARIABLE:
                properties[key] = _or_variable(cast(Schema, value))
    definitions["Variable"] = _VARIABLE
    definitions["TextWithVariables"] = _TEXT_WITH_VARIABLES
    return schema, needed


def _loosen(schema: Schema, definitions: Schema, known: dict[str, Schema]) -> Schema:
    """Remove `required` from a mapping and from those inside it that merge; returns what was removed.

    known  what was removed from definitions so far
    """
    needed: Schema = {}
    required = schema.pop("required", None)
    if required:
        needed["required"] = required
    inner: Schema = {}
    for key, value in _inner(schema, "properties").items():
        assert isinstance(value, dict)
        for name in _merged_definitions(value["items"] if key == "stages" else value):
            definition = _inner(definitions, name)
            if name not in known:
                known[name] = _loosen(definition, definitions, known)
            if key == "stages":
                # A stage is merged with the one of its name.
                definition["required"] = ["name"]
            if known[name]:
                inner[key] = {"items": known[name]} if key == "stages" else known[name]
    if inner:
        needed["properties"] = inner
    return needed


def _merged_definitions(value: JsonValue) -> Iterator[str]:
    """The definitions of mappings that a value may be itself, not in a list: these merge."""
    if not isinstance(value, dict):
        return
    reference = value.get("$ref")
    if isinstance(reference, str):
        yield reference.rpartition("/")[2]
    for word in ("anyOf", "oneOf"):
        choices = value.get(word)
        for choice in choices if isinstance(choices, list) else ():
            yield from _merged_definitions(choice)


def value_schema(model: type[BaseModel], *, title: str) -> Schema:
    """The JSON Schema of a model, with its defaults and without other keys."""
    schema = cast(Schema, model.model_json_schema())
    definitions = _inner(schema, "$defs")
    for name, known in _models(model).items():
        definition = schema if known is model else _inner(definitions, name)
        _close(definition)
        for key, field in known.model_fields.items():
            if field.default_factory is not None:
                default = field.get_default(call_default_factory=True, validated_data={})
                written = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
                _inner(_inner(definition, "properties"), key)["default"] = written
    return {"$schema": _DRAFT, **schema, "title": title}


def _models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The model and all models that its schema refers to, by name."""
    found: dict[str, type[BaseModel]] = {model.__name__: model}
    waiting: list[type[BaseModel]] = [Frozen]
    while waiting:
        for child in waiting.pop().__subclasses__():
            found.setdefault(child.__name__, child)
            waiting.append(child)
    names = set(_inner(cast(Schema, model.model_json_schema()), "$defs")) | {model.__name__}
    return {name: known for name, known in found.items() if name in names}


def _inner(schema: Schema, key: str) -> Schema:
    value = schema.setdefault(key, {})
    assert isinstance(value, dict)
    return value


def _close(schema: Schema) -> None:
    """Refuse keys that do not match the pattern of a mapping's keys."""
    for value in _inner(schema, "properties").values():
        if isinstance(value, dict) and "patternProperties" in value:
            value["additionalProperties"] = False


def _or_variable(schema: Schema) -> Schema:
    """The schema of a value that may also be a variable, unless any string is allowed already."""
    for word in ("anyOf", "oneOf"):
        choices = schema.get(word)
        if isinstance(choices, list):
            widened = [_items_or_variable(cast(Schema, choice)) for choice in choices]
            references = [reference for reference in map(_reference, widened) if reference is not None]
            plain = any(choice.get("type") == "string" and _reference(choice) is None for choice in widened)
            return {**schema, word: [*widened, *([] if plain else references[:1])]}
    schema = _items_or_variable(schema)
    reference = _reference(schema)
    if reference is None:
        return schema
    about = {key: value for key, value in schema.items() if key in _ABOUT}
    rules = {key: value for key, value in schema.items() if key not in _ABOUT}
    return {**about, "anyOf": [rules, reference]}


def _items_or_variable(schema: Schema) -> Schema:
    items = schema.get("items")
    return {**schema, "items": _or_variable(items)} if isinstance(items, dict) else schema


def _reference(schema: Schema) -> Schema | None:
    if schema.get("type") in ("integer", "number", "boolean"):
        return {"$ref": "#/$defs/Variable"}
    if "enum" in schema or "const" in schema or "pattern" in schema:
        return {"$ref": "#/$defs/TextWithVariables"}
    return None
