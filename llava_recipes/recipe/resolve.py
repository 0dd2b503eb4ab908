"""Apply `--set` overrides and `${name}` variables to values and marks together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

from llava_recipes.recipe.environment import check_declarations, declared
from llava_recipes.recipe.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.override import Override, read_override
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import Document
from llava_recipes.recipe.spelling import nearest
from llava_recipes.recipe.values import as_mapping, value_at
from llava_recipes.recipe.variables import MAX_ADVISED, Filling, references_in

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})

Marks: TypeAlias = dict[KeyPath, Mark]


def resolve(
    document: Document, overrides: Sequence[str], environment: Mapping[str, str] = NO_ENVIRONMENT
) -> Document:
    """The document with overrides laid over it and every `${name}` filled in; it keeps its problems."""
    with_overrides = _override(document, overrides)
    declarations = list(check_declarations(with_overrides))
    told = frozenset(problem.path for problem in declarations if problem.path is not None)
    # A name that may not be read is not read, and its uses are not told as well.
    filling = Filling(replace(with_overrides, spoiled=with_overrides.spoiled | told), environment)
    root = filling.fill(with_overrides.root, ())
    used = references_in(document.root) | references_in(with_overrides.root)
    # A reference with a slip is told as such; the variable that was meant is not told as unused too.
    known = (*filling.variables, *filling.declared)
    if len(known) <= MAX_ADVISED:
        used |= {near for name in used if name not in known and (near := nearest(name, known)) is not None}
    unused = [problem for problem in _unused(with_overrides, used) if problem.path not in told]
    return replace(
        with_overrides,
        root=root,
        problems=(*with_overrides.problems, *declarations, *filling.told, *unused),
        spoiled=frozenset(filling.spoiled),
        uses={path: tuple(names) for path, names in filling.uses.items()},
    )


def _unused(document: Document, used: set[str]) -> Iterator[Problem]:
    """Variables that nothing uses. Those of a parent may be meant for its other children."""
    variables = document.root.get("vars") if isinstance(document.root, dict) else None
    places: dict[KeyPath, str] = {}
    if isinstance(variables, dict):
        places = {("vars", name): name for name in variables}
    places |= {path: name for name, path in declared(document.root).items() if path != ("env",)}
    for path, name in places.items():
        mark = document.locate(path, on_key=path[0] == "vars")
        if name in used or (mark is not None and mark.file in document.parents):
            continue
        what = "the variable" if path[0] == "vars" else "the environment variable"
        hint = f"write `${{{name}}}` where it belongs, or remove it"
        yield Problem(
            f"{what} `{name}` is used nowhere",
            code="name-is-not-used",
            path=path,
            hint=hint,
            on_key=path[0] == "vars",
        )


def _override(document: Document, overrides: Sequence[str]) -> Document:
    """Lay `--set` overrides over a document, in order."""
    root = copy.deepcopy(document.root)
    value_marks, key_marks = dict(document.value_marks), dict(document.key_marks)
    problems = list(document.problems)
    spoiled = set(document.spoiled)
    set_paths: set[KeyPath] = set()
    for text in overrides:
        try:
            override = read_override(text, root)
        except RecipeError as error:
            problems += error.problems
            continue
        below = as_mapping(value_at(root, override.path[:-1]))
        others = displaced(override.path, override.value, given=(), below=below)
        gone = [path for path in others if path not in set_paths]
        for path in (override.path, *gone):
            _remove(root, path, value_marks, key_marks)
            problems = [problem for problem in problems if not _is_under(problem.path, path)]
            spoiled = {place for place in spoiled if not _is_under(place, path)}
        _insert(root, override, value_marks, key_marks)
        problems += override.problems
        spoiled.update(problem.path for problem in override.problems if problem.path and not problem.on_key)
        set_paths.add(override.path)
    return replace(
        document,
        root=root,
        value_marks=value_marks,
        key_marks=key_marks,
        problems=tuple(problems),
        spoiled=frozenset(spoiled),
    )


def _is_under(path: KeyPath | None, parent: KeyPath) -> bool:
    return path is not None and path[: len(parent)] == parent


def _remove(root: Value, path: KeyPath, value_marks: Marks, key_marks: Marks) -> None:
    parent = value_at(root, path[:-1])
    if isinstance(parent, dict) and isinstance(path[-1], str):
        parent.pop(path[-1], None)
    for marks in (value_marks, key_marks):
        for marked in [marked for marked in marks if _is_under(marked, path)]:
            del marks[marked]


def _insert(root: Value, override: Override, value_marks: Marks, key_marks: Marks) -> None:
    parent = root
    for depth, segment in enumerate(override.path[:-1]):
        if isinstance(parent, list) and isinstance(segment, int):
            parent = parent[segment]
        elif isinstance(parent, dict) and isinstance(segment, str):
            if parent.get(segment) is None:
                parent[segment] = {}
                made = override.path[: depth + 1]
                value_marks[made] = key_marks[made] = override.mark
            parent = parent[segment]
    last = override.path[-1]
    if isinstance(parent, list) and isinstance(last, int):
        parent[last] = override.value
    elif isinstance(parent, dict) and isinstance(last, str):
        parent[last] = override.value
        key_marks[override.path] = override.mark
    for path in override.inner_paths:
        value_marks[(*override.path, *path)] = override.mark
