"""Every key of the recipe language as the JSON Schema describes it: path, type, default, meaning, example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llava_recipes.authoring.shipped import Schema
from llava_recipes.recipe.scalars import Value, spell

# Every value may be written as a variable; saying so at each key would hide what the key is.
_VARIABLES = ("#/$defs/Variable", "#/$defs/TextWithVariables")
_RANGES = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_LARGEST_SHOWN = 2**31


@dataclass(frozen=True)
class Key:
    """One key. `path` spells list entries as `[]`: `stages[].train.learning_rate`."""

    path: str
    type: str
    needed: bool
    default: Value
    meaning: str
    examples: tuple[Value, ...]
    choices: tuple[Value, ...]
    is_free: bool
    """It holds keys that are not of the recipe language, such as those of a Hugging Face config."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def names(self) -> tuple[str, ...]:
        """The path's segments without `[]`."""
        return tuple(self.path.replace("[]", "").split("."))

    @property
    def default_text(self) -> str:
        if self.needed:
            return "none; the key is needed"
        if self.default is None or self.default == {} or self.default == []:
            return "not set"
        return "see its keys" if isinstance(self.default, dict) else spell(self.default)


def read_keys(schema: Schema) -> tuple[Key, ...]:
    """All keys of the schema, each mapping followed by its own keys."""
    return tuple(_Walk(schema).keys(schema, ""))


def _needed(schema: Schema, parent: str) -> Iterator[str]:
    """The paths of the keys that must be there, from a schema of nothing but `required`."""
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        yield f"{parent}{name}"
    for name, inner in _mapping(schema.get("properties")).items():
        yield from _needed(_mapping(inner), f"{parent}{name}.")
    if "items" in schema:
        yield from _needed(_mapping(schema["items"]), f"{parent.removesuffix('.')}[].")


class _Walk:
    def __init__(self, schema: Schema) -> None:
        self.definitions = _mapping(schema.get("$defs"))
        # What a recipe needs as a whole, wherever in its files it is written.
        self.needed = frozenset(_needed(_mapping(schema.get("else")), ""))

    def keys(self, mapping: Schema, parent: str) -> Iterator[Key]:
        required = mapping.get("required")
        for name, value in _mapping(mapping.get("properties")).items():
            schema = _mapping(value)
            path = f"{parent}.{name}" if parent else name
            needed = path in self.needed or (isinstance(required, list) and name in required)
            yield self.key(schema, path, needed=needed)
            for shape in self.shapes(schema):
                items = _mapping(shape.get("items"))
                for inner in self.shapes(items) if items else ():
                    yield from self.keys(inner, f"{path}[]")
                yield from self.keys(shape, path)

    def key(self, schema: Schema, path: str, *, needed: bool) -> Key:
        shapes = [shape for shape in self.shapes(schema) if shape.get("type") != "null"]
        meaning = schema.get("description") or next(
            (shape["description"] for shape in shapes if "description" in shape), ""
        )
        examples = schema.get("examples")
        return Key(
            path=path,
            type=self.one_of(shapes),
            needed=needed,
            default=schema.get("default"),
            meaning=str(meaning),
            examples=tuple(examples) if isinstance(examples, list) else (),
            choices=tuple(choice for shape in shapes for choice in _choices(shape)),
            is_free=any(_is_free(shape) for shape in shapes),
        )

    def shapes(self, schema: Schema) -> list[Schema]:
        """The schema's alternatives with references followed, without those that are only variables."""
        reference = schema.get("$ref")
        if isinstance(reference, str):
            if reference in _VARIABLES:
                return []
            return self.shapes(_mapping(self.definitions.get(reference.rpartition("/")[2])))
        for word in ("anyOf", "oneOf"):
            choices = schema.get(word)
            if isinstance(choices, list):
                return [shape for choice in choices for shape in self.shapes(_mapping(choice))]
        return [schema]

    def one_of(self, shapes: list[Schema]) -> str:
        words = " | ".join(dict.fromkeys(spell(choice) for shape in shapes for choice in _choices(shape)))
        others = dict.fromkeys(self.type(shape) for shape in shapes if not _choices(shape))
        return " or ".join(filter(None, (words, *others))) or "any value"

    def type(self, shape: Schema) -> str:
        if shape.get("type") == "array":
            return f"list of {_plural(self.one_of(self.shapes(_mapping(shape.get('items')))))}"
        if shape.get("type") == "object":
            return "mapping"
        word = _TYPES.get(str(shape.get("type")), "any value")
        bounds = [
            f"{sign} {spell(shape[name])}"
            for name, sign in _RANGES
            if name in shape and not _is_huge(shape[name])
        ]
        return " ".join((word, " and ".join(bounds))).strip()


def _mapping(value: Value) -> Schema:
    return value if isinstance(value, dict) else {}


def _choices(shape: Schema) -> list[Value]:
    words = shape.get("enum")
    return words if isinstance(words, list) else [shape["const"]] if "const" in shape else []


def _is_free(shape: Schema) -> bool:
    return shape.get("type") == "object" and "properties" not in shape


def _is_huge(value: Value) -> bool:
    return isinstance(value, int) and abs(value) >= _LARGEST_SHOWN


def _plural(word: str) -> str:
    return f"{word}s" if word in ("mapping", "whole number", "number") else word
