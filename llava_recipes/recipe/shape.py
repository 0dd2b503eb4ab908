"""Ask the schema what may stand at a path, and where a key belongs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.schema import Frozen, Recipe


def shapes_at(path: KeyPath) -> tuple[object, ...]:
    """The types that may stand at a path, unions taken apart; empty where the schema has no such path."""
    shapes: tuple[object, ...] = (Recipe,)
    for segment in path:
        shapes = tuple(inner for shape in shapes for inner in _step(shape, segment))
    return shapes


def _step(shape: object, segment: str | int) -> Iterator[object]:
    arguments = get_args(shape)
    if is_model(shape):
        fields = fields_of(shape)
        if isinstance(segment, str) and segment in fields:
            yield from _apart(fields[segment].annotation)
    elif get_origin(shape) is tuple and isinstance(segment, int):
        yield from _apart(arguments[0])
    elif get_origin(shape) is dict and isinstance(segment, str):
        yield from _apart(arguments[1])
    elif is_free(shape):
        yield shape


def _apart(annotation: object) -> Iterator[object]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _apart(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _apart(part)
    else:
        yield annotation


def is_model(shape: object) -> bool:
    """Whether a type is a mapping with known keys."""
    return isinstance(shape, type) and issubclass(shape, Frozen)


def is_free(shape: object) -> bool:
    """Whether a type takes any JSON value."""
    return getattr(shape, "__name__", None) == "JsonValue"


def is_list(shape: object) -> bool:
    """Whether a type is a list."""
    return get_origin(shape) is tuple


def fields_of(shape: object) -> dict[str, FieldInfo]:
    """The keys that a model knows."""
    assert isinstance(shape, type) and issubclass(shape, Frozen)
    return dict(shape.model_fields)


def keys_at(path: KeyPath) -> tuple[str, ...]:
    """The keys that the mapping at a path may hold; empty when it is free or no mapping."""
    return tuple(key for shape in shapes_at(path) if is_model(shape) for key in fields_of(shape))


def field_at(path: KeyPath) -> FieldInfo | None:
    """The schema's description of the key at a path."""
    if path and isinstance(path[-1], str):
        for shape in shapes_at(path[:-1]):
            if is_model(shape) and path[-1] in fields_of(shape):
                return fields_of(shape)[path[-1]]
    return None


def choices_at(path: KeyPath) -> tuple[object, ...]:
    """The fixed words (or numbers) that may stand at a path."""
    return tuple(
        word for shape in shapes_at(path) if get_origin(shape) is Literal for word in get_args(shape)
    )


def wanted_at(path: KeyPath) -> str:
    """What the schema wants at a path, in words: "a number", "text or a mapping"."""
    words: list[str] = []
    for shape in shapes_at(path):
        if shape is NoneType:
            continue
        word = (
            "text"
            if get_origin(shape) is Literal
            else _WORDS.get(shape)
            or (
                "a list"
                if is_list(shape)
                else "a mapping"
                if is_model(shape) or get_origin(shape) is dict
                else "a value"
            )
        )
        if word not in words:
            words.append(word)
    return " or ".join(words)


_WORDS: dict[object, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@functools.cache
def homes() -> dict[str, tuple[str, ...]]:
    """Every key of the recipe language, with the mappings it belongs in: {"seed": ("model.projector", …)}.

    A parameter group repeats keys of `train`: it is named for its own alone.
    """
    found: dict[str, list[str]] = {}

    def visit(shape: object, place: str) -> None:
        if is_list(shape):
            for inner in _apart(get_args(shape)[0]):
                visit(inner, f"{place}[]")
        elif is_model(shape):
            for key, field in fields_of(shape).items():
                found.setdefault(key, []).append(place)
                for inner in _apart(field.annotation):
                    visit(inner, f"{place}.{key}" if place else key)

    visit(Recipe, "")
    return {
        key: tuple(place for place in places if place != "stages[].param_groups[]") or tuple(places)
        for key, places in found.items()
    }


def spell_path(path: KeyPath) -> str:
    """A path as it is written in messages: `stages[0].train.max_steps`."""
    spelled = ""
    for segment in path:
        spelled += f"[{segment}]" if isinstance(segment, int) else f".{segment}" if spelled else segment
    return spelled
