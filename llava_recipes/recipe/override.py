"""Apply `--set a.b=c` of the command line to a recipe, then fill `${name}` in; values and marks together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias, get_origin

from llava_recipes.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.masking import mask_assignment
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.language import is_free, is_list, keys_at, shapes_at, spell_path, wanted_at
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.scalars import Value, as_mapping, kind_of, value_at
from llava_recipes.recipe.source import Document, parse_value
from llava_recipes.recipe.variables import fill_variables, references_in

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})
Marks: TypeAlias = dict[KeyPath, Mark]


def resolve(
    document: Document, overrides: Sequence[str], environment: Mapping[str, str] = NO_ENVIRONMENT
) -> Document:
    """The document with overrides applied in order and every `${name}` filled in; it keeps its problems."""
    # A variable is used, too, where an override has replaced the value that refers to it.
    return fill_variables(_override(document, overrides), environment, used=references_in(document.root))


def _override(document: Document, overrides: Sequence[str]) -> Document:
    root = copy.deepcopy(document.root)
    value_marks, key_marks = dict(document.value_marks), dict(document.key_marks)
    problems, spoiled = list(document.problems), set(document.spoiled)
    set_paths: set[KeyPath] = set()
    for text in overrides:
        try:
            override = read_override(text, root)
        except RecipeError as error:
            problems += error.problems
            continue
        below = as_mapping(value_at(root, override.path[:-1]))
        others = displaced(override.path, override.value, given=(), below=below)
        for path in (override.path, *(path for path in others if path not in set_paths)):
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


@dataclass(frozen=True)
class Override:
    """A value for a path, and where on the command line it was given."""

    path: KeyPath
    value: Value
    mark: Mark
    inner_paths: tuple[KeyPath, ...]
    problems: tuple[Problem, ...]


def read_override(text: str, root: Value) -> Override:
    """Read `path=value`, with stages by name or index; raises RecipeError when the path cannot exist."""
    mark = Mark(f"--set {mask_assignment(text)}", 0, 0)
    if not text.isascii() and text != text.encode("utf-8", "replace").decode("utf-8"):
        # The shell's bytes that are not UTF-8 arrive as unpaired surrogates.
        message, hint = "`--set` must be UTF-8", "set the terminal to UTF-8"
        raise RecipeError.of(message, code="not-utf-8", mark=mark, hint=hint)
    written, equals, value = text.partition("=")
    if not equals or not written.strip():
        message, hint = "`--set` needs `path=value`", "for example --set stages.0.train.max_steps=5"
        raise RecipeError.of(message, code="invalid-override", mark=mark, hint=hint)
    path = _path(written.strip(), root, mark)
    if path[0] == "extends":
        message = "`--set` cannot set `extends`"
        hint = "write it in a recipe; `--set` changes single values"
        raise RecipeError.of(message, code="extends-on-command-line", mark=mark, hint=hint)
    try:
        document = parse_value(value, mark.file)
    except RecipeError as error:
        raise RecipeError(*(replace(problem, mark=mark) for problem in error.problems)) from None
    problems = tuple(
        replace(problem, mark=mark, path=None if problem.path is None else (*path, *problem.path))
        for problem in document.problems
    )
    return Override(path, document.root, mark, tuple(document.value_marks), problems)


def _path(written: str, root: Value, mark: Mark) -> KeyPath:
    words = written.split(".")
    path: KeyPath = ()
    value = root
    while words:
        if path == ("vars",):
            words = [".".join(words)]
        if isinstance(value, list) or (value is None and any(map(is_list, shapes_at(path)))):
            entries = value if isinstance(value, list) else []
            index, num_words = _entry(words, entries, path, mark)
            path, value, words = (*path, index), entries[index], words[num_words:]
            continue
        key = words.pop(0)
        _check_key(key, path, value, mark)
        path, value = (*path, key), value.get(key) if isinstance(value, dict) else None
    return path


def _entry(words: list[str], entries: list[Value], path: KeyPath, mark: Mark) -> tuple[int, int]:
    """The index of the list entry that the words start with, and how many words it took.

    A stage's name may contain dots, so the longest name that fits wins.
    """
    names = {
        str(entry["name"]): index
        for index, entry in enumerate(entries)
        if path == ("stages",) and isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    for num_words in range(len(words), 0, -1):
        if ".".join(words[:num_words]) in names:
            return names[".".join(words[:num_words])], num_words
    word = words[0]
    if word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < len(entries):
        return int(word), 1
    place = spell_path(path)
    stages = ", ".join(f"`{name}`" for name in names)
    hint = did_you_mean(word, names) or (f"stages: {stages}" if names else None)
    found = f"`{place}` has {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, counted from 0"
    message = f"`{place}` has no entry `{word}`"
    raise RecipeError.of(message, code="list-has-no-entry", mark=mark, found=found, hint=hint)


def _check_key(key: str, path: KeyPath, value: Value, mark: Mark) -> None:
    place = f"`{spell_path(path)}`" if path else "the recipe"
    if value is not None and not isinstance(value, dict):
        message = f"{place} is {kind_of(value)} and has no key `{key}`"
        raise RecipeError.of(message, code="value-holds-no-key", mark=mark, hint=f"set {place} as a whole")
    if key and any(is_free(shape) or get_origin(shape) is dict for shape in shapes_at(path)):
        return
    known = keys_at(path)
    if not known:
        message = f"{place} takes {wanted_at(path)} and has no key `{key}`"
        raise RecipeError.of(message, code="value-holds-no-key", mark=mark)
    if key not in known:
        hint = did_you_mean(key, known) or f"keys: {', '.join(known)}"
        raise RecipeError.of(f"{place} has no key `{key}`", code="unknown-key", mark=mark, hint=hint)


def _is_under(path: KeyPath | None, parent: KeyPath) -> bool:
    return path is not None and path[: len(parent)] == parent


def _remove(root: Value, path: KeyPath, *all_marks: Marks) -> None:
    parent = value_at(root, path[:-1])
    if isinstance(parent, dict) and isinstance(path[-1], str):
        parent.pop(path[-1], None)
    for marks in all_marks:
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
