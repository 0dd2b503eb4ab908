"""Lay one recipe file over another: values, marks and problems move together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.schema import Stage
from llava_recipes.recipe.source import Document
from llava_recipes.recipe.spelling import nearest

MAX_SEARCHED = 20
"""With more stages than this, none is suggested in the place of another."""

Kept = TypeVar("Kept")


def lay_over(below: Document, above: Document) -> Document:
    """One document of two: where both say something, `above` is right.

    Mappings merge key by key, `stages` by their names, `env` is joined; any other value is replaced.
    """
    shared = [key for key in ("stages", "env") if all(map(partial(_holds_list, key), (below, above)))]
    under, over = _by_name(below, shared), _by_name(above, shared)
    merging = _Merging()
    root = merging.merge(under.root, over.root, ())
    lost = list(_lost_stages(under.root, over.root))
    merged = replace(
        above,
        root=root,
        value_marks={**merging.kept(under.value_marks), **over.value_marks},
        key_marks={**merging.kept(under.key_marks), **over.key_marks},
        problems=(*under.problems, *over.problems, *lost),
        spoiled=frozenset(
            (
                *merging.kept(dict.fromkeys(under.spoiled)),
                *over.spoiled,
                *(problem.path[:2] for problem in lost if problem.path is not None),
            )
        ),
        parents=(*below.parents, *above.parents),
    )
    return _by_number(merged)


class _Named(dict[str, Value]):
    """A list whose entries are known by name while two files are merged."""


class _Merging:
    """Merge values, and remember which of the lower ones are gone."""

    def __init__(self) -> None:
        self.gone: set[KeyPath] = set()

    def merge(self, under: Value, over: Value, path: KeyPath) -> Value:
        if not isinstance(under, dict) or not isinstance(over, dict) or type(under) is not type(over):
            self.gone.add(path)
            return over
        merged = type(under)(under)
        for key, value in over.items():
            for other in displaced((*path, key), value, given=over, below=under):
                if merged.pop(str(other[-1]), None) is not None:
                    self.gone.add(other)
            merged[key] = self.merge(under[key], value, (*path, key)) if key in under else value
        return merged

    def kept(self, marks: dict[KeyPath, Kept]) -> dict[KeyPath, Kept]:
        """The lower marks whose values are still there."""
        if () in self.gone:
            return {}
        heads = {path[0] for path in self.gone}
        return {
            path: mark
            for path, mark in marks.items()
            if not path
            or path[0] not in heads
            or not any(path[:end] in self.gone for end in range(1, len(path) + 1))
        }


def _lost_stages(under: Value, over: Value) -> Iterator[Problem]:
    """Stages that were meant for one below and do not find it."""
    below = under.get("stages") if isinstance(under, dict) else None
    above = over.get("stages") if isinstance(over, dict) else None
    if not isinstance(below, _Named) or not isinstance(above, _Named):
        return
    needed = [name for name, field in Stage.model_fields.items() if field.is_required()]
    if len(below) > MAX_SEARCHED:
        return
    names = ", ".join(f"`{name}`" for name in below)
    for name, stage in above.items():
        if name in below or not isinstance(stage, dict) or all(key in stage for key in needed):
            continue
        path: KeyPath = ("stages", name)
        if "name" not in stage:
            hint = f"write its `name:` first; what is extended has {names}"
            yield Problem(
                "`stages` merge by name, and this one has none",
                code="stage-without-name",
                path=path,
                hint=hint,
            )
        elif (near := nearest(name, below)) is not None:
            message = f"what is extended has no stage `{name}`, and this is not a whole one"
            yield Problem(
                message,
                code="stage-is-incomplete",
                path=(*path, "name"),
                hint=f"did you mean `{near}`?",
            )


def _holds_list(key: str, document: Document) -> bool:
    return isinstance(document.root, dict) and isinstance(document.root.get(key), list)


def _by_name(document: Document, keys: Sequence[str]) -> Document:
    """The document with the entries of some lists, stages or environment variables, under their names."""
    if not keys or not isinstance(document.root, dict):
        return document
    root, names = dict(document.root), dict[str, list[str]]()
    for key in keys:
        entries = root[key]
        assert isinstance(entries, list)
        names[key] = _names(entries, document.file)
        root[key] = _Named(zip(names[key], entries, strict=True))

    def move(path: KeyPath) -> KeyPath:
        if len(path) < 2 or path[0] not in names:
            return path
        number = path[1]
        assert isinstance(number, int)
        return (path[0], names[str(path[0])][number], *path[2:])

    return _moved(document, root, move)


def _by_number(document: Document) -> Document:
    """The same undone: lists again, in the order in which their names came up."""
    if not isinstance(document.root, dict):
        return document
    root, numbers = dict(document.root), dict[str, dict[str, int]]()
    for key, entries in document.root.items():
        if isinstance(entries, _Named):
            numbers[key] = {name: index for index, name in enumerate(entries)}
            root[key] = list(entries.values())
    if not numbers:
        return document

    def move(path: KeyPath) -> KeyPath:
        if len(path) < 2 or path[0] not in numbers:
            return path
        return (path[0], numbers[str(path[0])][str(path[1])], *path[2:])

    return _moved(document, root, move)


def _names(entries: list[Value], file: str) -> list[str]:
    """A name for each entry; one that has none of its own, or another's, gets one that nobody writes."""
    names: list[str] = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else entry
        names.append(name if isinstance(name, str) and name not in names else f"\0{file}\0{index}")
    return names


def _moved(document: Document, root: Value, move: Callable[[KeyPath], KeyPath]) -> Document:
    """The document with another root, and every path where it belongs in it."""
    return replace(
        document,
        root=root,
        value_marks={move(path): mark for path, mark in document.value_marks.items()},
        key_marks={move(path): mark for path, mark in document.key_marks.items()},
        problems=tuple(
            problem if problem.path is None else replace(problem, path=move(problem.path))
            for problem in document.problems
        ),
        spoiled=frozenset(map(move, document.spoiled)),
    )
