"""Read one `--set a.b=c` of the command line: which path, which value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_origin

from llava_recipes.masking import mask_assignment
from llava_recipes.recipe.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.language import is_free, is_list, keys_at, shapes_at, spell_path, wanted_at
from llava_recipes.recipe.scalars import Value, kind_of
from llava_recipes.recipe.source import Document, parse_value
from llava_recipes.recipe.spelling import did_you_mean


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
        # Bytes that are no text come from the shell as half characters.
        raise RecipeError(
            Problem(
                "an override must be UTF-8",
                code="not-utf-8",
                mark=mark,
                hint="set the terminal to UTF-8",
            )
        )
    written, equals, value = text.partition("=")
    if not equals or not written.strip():
        hint = "for example --set stages.0.train.max_steps=5"
        raise RecipeError(
            Problem("an override needs `path=value`", code="invalid-override", mark=mark, hint=hint)
        )
    path = _path(written.strip(), root, mark)
    if path[0] == "extends":
        hint = "write it in a recipe of its own; `--set` changes single values"
        raise RecipeError(
            Problem(
                "`extends` cannot be set on the command line",
                code="extends-on-command-line",
                mark=mark,
                hint=hint,
            )
        )
    document = _value(value, mark)
    problems = tuple(
        replace(problem, mark=mark, path=None if problem.path is None else (*path, *problem.path))
        for problem in document.problems
    )
    return Override(path, document.root, mark, tuple(document.value_marks), problems)


def _value(text: str, mark: Mark) -> Document:
    try:
        return parse_value(text, mark.file)
    except RecipeError as error:
        raise RecipeError(*(replace(problem, mark=mark) for problem in error.problems)) from None


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
    """The index of the list entry that the words begin with, and how many words it took.

    A stage's name may hold dots, so the longest name that fits wins.
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
    number = f"`{place}` has {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, counted from 0"
    raise RecipeError(
        Problem(
            f"`{place}` has no entry `{word}`", code="list-has-no-entry", mark=mark, found=number, hint=hint
        )
    )


def _check_key(key: str, path: KeyPath, value: Value, mark: Mark) -> None:
    place = f"`{spell_path(path)}`" if path else "the recipe"
    if value is not None and not isinstance(value, dict):
        message = f"{place} is {kind_of(value)} and holds no key `{key}`"
        raise RecipeError(
            Problem(message, code="value-holds-no-key", mark=mark, hint=f"set {place} as a whole")
        )
    shapes = shapes_at(path)
    if any(is_free(shape) or get_origin(shape) is dict for shape in shapes) and key:
        return
    known = keys_at(path)
    if not known:
        message = f"{place} takes {wanted_at(path)} and holds no key `{key}`"
        raise RecipeError(Problem(message, code="value-holds-no-key", mark=mark))
    if key not in known:
        hint = did_you_mean(key, known) or f"keys: {', '.join(known)}"
        raise RecipeError(Problem(f"{place} has no key `{key}`", code="unknown-key", mark=mark, hint=hint))
