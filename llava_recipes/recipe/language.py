"""The recipe language as data, read from the schema: the types at a path, and every key with its meaning."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeAlias, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from llava_recipes.errors import KeyPath
from llava_recipes.recipe.keys import Key
from llava_recipes.recipe.scalars import Value, spell
from llava_recipes.recipe.schema import Frozen, Recipe

Shape: TypeAlias = object
"""A type of the schema without its Annotated, and not a union: `str`, `tuple[Source, ...]`, `Train`."""

_WORDS: dict[object, str] = {str: "string", int: "whole number", float: "number", bool: "true or false"}
_COUNTED = ("string", "mapping", "list", "whole number", "number")
_BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
_LARGEST_SHOWN = 2**31


def shapes_at(path: KeyPath) -> tuple[Shape, ...]:
    """The types allowed at a path, unions split; empty where the schema has no such path."""
    shapes: tuple[Shape, ...] = (Recipe,)
    for segment in path:
        shapes = tuple(inner for shape in shapes for inner in _step(shape, segment))
    return shapes


def _step(shape: Shape, segment: str | int) -> Iterator[Shape]:
    if is_model(shape):
        if segment in shape.model_fields:
            yield from _shapes(shape.model_fields[segment].annotation)
    elif is_list(shape) and isinstance(segment, int):
        yield from _shapes(get_args(shape)[0])
    elif get_origin(shape) is dict and isinstance(segment, str):
        yield from _shapes(get_args(shape)[1])
    elif is_free(shape):
        yield shape


def _shapes(annotation: object) -> Iterator[Shape]:
    return (shape for shape, _ in _parts(annotation))


def _parts(annotation: object, bounds: tuple[object, ...] = ()) -> Iterator[tuple[Shape, tuple[object, ...]]]:
    """The alternatives of an annotation, each with what bounds it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for remark in arguments[1:]:
            bounds = (*bounds, *(remark.metadata if isinstance(remark, FieldInfo) else ()))
        yield from _parts(arguments[0], bounds)
    elif origin in (Union, UnionType):
        for part in arguments:
            yield from _parts(part, bounds)
    else:
        yield annotation, bounds


def is_model(shape: Shape) -> TypeGuard[type[Frozen]]:
    """Whether a type is a mapping with known keys."""
    return isinstance(shape, type) and issubclass(shape, Frozen)


def is_free(shape: Shape) -> bool:
    """Whether a type takes any JSON value."""
    return getattr(shape, "__name__", None) == "JsonValue"


def is_list(shape: Shape) -> bool:
    """Whether a type is a list."""
    return get_origin(shape) is tuple


def keys_at(path: KeyPath) -> tuple[str, ...]:
    """The keys of the mapping at a path; empty if it takes any key or isn't a mapping."""
    return tuple(key for shape in shapes_at(path) if is_model(shape) for key in shape.model_fields)


def field_at(path: KeyPath) -> FieldInfo | None:
    """The schema's description of the key at a path."""
    if path and isinstance(path[-1], str):
        for shape in shapes_at(path[:-1]):
            if is_model(shape) and path[-1] in shape.model_fields:
                return shape.model_fields[path[-1]]
    return None


def choices_at(path: KeyPath) -> tuple[Value, ...]:
    """The fixed words (or numbers) allowed at a path."""
    return _choices(shapes_at(path))


def _choices(shapes: Iterable[Shape]) -> tuple[Value, ...]:
    return tuple(word for shape in shapes if get_origin(shape) is Literal for word in get_args(shape))


def wanted_at(path: KeyPath) -> str:
    """What the schema wants at a path, in words: "a number", "a string or a mapping"."""
    words = (
        "string" if get_origin(shape) is Literal else _kind(shape) or "a value"
        for shape in shapes_at(path)
        if shape is not NoneType
    )
    return " or ".join(dict.fromkeys(f"a {word}" if word in _COUNTED else word for word in words))


def _kind(shape: Shape) -> str | None:
    if is_model(shape) or get_origin(shape) is dict:
        return "mapping"
    return "list" if is_list(shape) else _WORDS.get(shape)


@functools.cache
def schema_keys() -> tuple[Key, ...]:
    """Every key of the language, each mapping followed by its own keys; keys.json lists the same."""
    return tuple(_keys(Recipe, ""))


def _keys(shape: Shape, place: str) -> Iterator[Key]:
    """The keys inside a type."""
    if is_list(shape):
        for inner in _shapes(get_args(shape)[0]):
            yield from _keys(inner, f"{place}[]")
    elif is_model(shape):
        for name, field in shape.model_fields.items():
            path = f"{place}.{name}" if place else name
            shapes = tuple(_shapes(field.annotation))
            needed = field.is_required()
            default = None if needed else field.get_default(call_default_factory=True, validated_data={})
            yield Key(
                path=path,
                type=_type(field.annotation, tuple(field.metadata)),
                needed=needed,
                default=to_jsonable_python(default),
                meaning=field.description or "",
                examples=tuple(field.examples or ()),
                choices=_choices(shapes),
                is_free=any(get_origin(shape) is dict for shape in shapes),
            )
            for inner in shapes:
                yield from _keys(inner, path)


def _type(annotation: object, bounds: tuple[object, ...] = ()) -> str:
    """A type in words: "number ≥ 0 and < 1", "all | none or list of strings"."""
    parts = [(shape, inner) for shape, inner in _parts(annotation, bounds) if shape is not NoneType]
    choices = " | ".join(dict.fromkeys(spell(word) for word in _choices(shape for shape, _ in parts)))
    others = (_alternative(shape, inner) for shape, inner in parts if get_origin(shape) is not Literal)
    return " or ".join(filter(None, (choices, *dict.fromkeys(others))))


def _alternative(shape: Shape, bounds: tuple[object, ...]) -> str:
    if is_list(shape):
        entry = _type(get_args(shape)[0])
        kind = next((kind for kind in _COUNTED if entry.startswith(kind)), "")
        return f"list of {kind}s{entry.removeprefix(kind)}" if kind else f"list of {entry}"
    limits = " and ".join(
        f"{sign} {spell(getattr(bound, name))}"
        for name, sign in _BOUNDS
        for bound in bounds
        if hasattr(bound, name) and not _is_huge(getattr(bound, name))
    )
    return f"{_kind(shape) or 'any value'} {limits}".strip()


def _is_huge(bound: float) -> bool:
    return isinstance(bound, int) and abs(bound) >= _LARGEST_SHOWN


@functools.cache
def homes() -> dict[str, tuple[str, ...]]:
    """Every key of the language, with the mappings it belongs in: {"seed": ("model.projector", …)}.

    A parameter group repeats keys of `train`; for those only `train` is listed.
    """
    found: dict[str, list[str]] = {}
    for key in schema_keys():
        found.setdefault(key.name, []).append(key.path.rpartition(".")[0])
    return {
        key: tuple(place for place in places if place != "stages[].param_groups[]") or tuple(places)
        for key, places in found.items()
    }


def spell_path(path: KeyPath) -> str:
    """A path as messages spell it: `stages[0].train.max_steps`."""
    spelled = ""
    for segment in path:
        spelled += f"[{segment}]" if isinstance(segment, int) else f".{segment}" if spelled else segment
    return spelled
