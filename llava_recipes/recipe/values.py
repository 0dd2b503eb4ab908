"""Plain values as they came from a file, taken for what they should be."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.scalars import Value

Mapping = dict[str, Value]


def as_mapping(value: Value) -> Mapping:
    """The mapping itself; an empty one for anything else, which the schema tells."""
    return value if isinstance(value, dict) else {}


def as_list(value: Value) -> list[Value]:
    """The list itself; an empty one for anything else, which the schema tells."""
    return value if isinstance(value, list) else []


def given_keys(mapping: Mapping, *keys: str) -> list[str]:
    """Those of the keys that have a value."""
    return [key for key in keys if mapping.get(key) is not None]


def value_at(value: Value, path: KeyPath) -> Value:
    """What stands at a path inside a value; None where the path leads nowhere."""
    for segment in path:
        if isinstance(value, dict) and isinstance(segment, str):
            value = value.get(segment)
        elif isinstance(value, list) and isinstance(segment, int) and segment < len(value):
            value = value[segment]
        else:
            return None
    return value


def texts_in(value: Value, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text at any depth of a value, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from texts_in(entry, (*path, index))
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from texts_in(entry, (*path, key))
