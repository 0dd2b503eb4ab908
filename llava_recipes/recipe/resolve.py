"""Apply `--set` overrides and `${name}` variables to values and marks together."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from llava_recipes.recipe.errors import Mark, Path, Problem, RecipeError
from llava_recipes.recipe.override import Override, read_override
from llava_recipes.recipe.scalars import Value, kind_of, spell_value
from llava_recipes.recipe.source import Document
from llava_recipes.recipe.spelling import did_you_mean, nearest

MAX_TEXT_CHARACTERS = 100_000

# Of each pair only one may be given, so an override takes the place of the other one in the file.
ONE_OF_TWO = (
    ("num_train_epochs", "max_steps"),
    ("gradient_accumulation_steps", "global_batch_size"),
    ("warmup_ratio", "warmup_steps"),
)

Marks: TypeAlias = dict[Path, Mark]

_REFERENCE = re.compile(r"\$?\$\{(?P<name>[^{}]*)(?P<end>\}?)")


def resolve(document: Document, overrides: Sequence[str]) -> Document:
    """The document with overrides laid over it and every `${name}` filled in; it keeps its problems."""
    with_overrides = _override(document, overrides)
    filling = _Filling(with_overrides)
    root = filling.fill(with_overrides.root, ())
    used = _references(document.root) | _references(with_overrides.root)
    # A reference with a slip is told as such; the variable that was meant is not told as unused too.
    used |= {near for name in used if (near := nearest(name, filling.variables)) is not None}
    unused = [
        Problem(
            f"the variable `{name}` is used nowhere",
            path=("vars", name),
            hint=f"write `${{{name}}}` where it belongs, or remove it",
            on_key=True,
        )
        for name in filling.variables
        if name not in used
    ]
    problems = (*with_overrides.problems, *filling.problems, *unused)
    return replace(with_overrides, root=root, problems=problems, spoiled=frozenset(filling.spoiled))


def _override(document: Document, overrides: Sequence[str]) -> Document:
    """Lay `--set` overrides over a document, in order."""
    root = copy.deepcopy(document.root)
    value_marks, key_marks = dict(document.value_marks), dict(document.key_marks)
    problems = list(document.problems)
    spoiled = set(document.spoiled)
    set_paths: set[Path] = set()
    for text in overrides:
        try:
            override = read_override(text, root)
        except RecipeError as error:
            problems += error.problems
            continue
        for path in (override.path, *_displaced(override, set_paths)):
            _remove(root, path, value_marks, key_marks)
            problems = [problem for problem in problems if not _is_under(problem.path, path)]
            spoiled = {place for place in spoiled if not _is_under(place, path)}
        _insert(root, override, value_marks, key_marks)
        problems += override.problems
        spoiled.update(problem.path for problem in override.problems if problem.path and not problem.on_key)
        set_paths.add(override.path)
    return Document(document.file, root, value_marks, key_marks, tuple(problems), frozenset(spoiled))


def _displaced(override: Override, set_paths: set[Path]) -> list[Path]:
    *parent, key = override.path
    others = [other for pair in ONE_OF_TWO if key in pair for other in pair if other != key]
    paths: list[Path] = [(*parent, other) for other in others]
    return [] if override.value is None else [path for path in paths if path not in set_paths]


def _is_under(path: Path | None, parent: Path) -> bool:
    return path is not None and path[: len(parent)] == parent


def _remove(root: Value, path: Path, value_marks: Marks, key_marks: Marks) -> None:
    parent = _value_at(root, path[:-1])
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


def _value_at(value: Value, path: Path) -> Value:
    for segment in path:
        if isinstance(value, dict) and isinstance(segment, str):
            value = value.get(segment)
        elif isinstance(value, list) and isinstance(segment, int) and segment < len(value):
            value = value[segment]
        else:
            return None
    return value


def _references(value: Value) -> set[str]:
    """Every name that a text anywhere inside a value refers to."""
    if isinstance(value, dict):
        return set().union(*map(_references, value.values()))
    if isinstance(value, list):
        return set().union(*map(_references, value))
    if isinstance(value, str):
        references = (found for found in _REFERENCE.finditer(value) if not found.group().startswith("$$"))
        return {found["name"].strip() for found in references}
    return set()


_PLAIN = "`$${` stands for a plain `${`"


class _Filling:
    """Fill variables in, everywhere in one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        root = document.root
        variables = root.get("vars") if isinstance(root, dict) else None
        self.variables: dict[str, Value] = variables if isinstance(variables, dict) else {}
        self.problems: list[Problem] = []
        self.spoiled = set(document.spoiled)
        self.known: dict[str, Value] = {}
        self.filling: list[str] = []

    def fill(self, value: Value, path: Path) -> Value:
        if isinstance(value, dict):
            return {key: self.fill(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.fill(inner, (*path, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if len(path) == 2 and path[0] == "vars":
            return self.variable(str(path[1]), path)
        return self.text(value, path)

    def text(self, value: str, path: Path) -> Value:
        """A text with its references filled in; a text that is one reference takes the variable's type."""
        parts: list[str] = []
        end = 0
        for found in _REFERENCE.finditer(value):
            parts.append(value[end : found.start()])
            end = found.end()
            if found.group().startswith("$$"):
                parts.append(found.group()[1:])
                continue
            if not found["end"]:
                return self.refuse(value, path, "`${` without its `}`", f"close it; {_PLAIN}")
            filled = self.reference(found["name"].strip(), value, path)
            if path in self.spoiled or found.span() == (0, len(value)):
                return filled
            parts.append(filled if isinstance(filled, str) else spell_value(filled))
            if sum(map(len, parts)) > MAX_TEXT_CHARACTERS:
                message = f"the text grows beyond {MAX_TEXT_CHARACTERS:,} characters"
                return self.refuse(value, path, message, "use fewer variables inside variables")
        return "".join((*parts, value[end:]))

    def reference(self, name: str, value: str, path: Path) -> Value:
        if name in self.variables:
            return self.variable(name, path)
        names = ", ".join(f"`{known}`" for known in self.variables)
        start = f"`vars` holds {names}" if names else f"write `vars: {{{name}: …}}` at the top level"
        hint = did_you_mean(name, self.variables) or f"{start}; {_PLAIN}"
        return self.refuse(value, path, f"no variable for `${{{name}}}`", hint)

    def variable(self, name: str, path: Path) -> Value:
        if ("vars", name) in self.spoiled:
            self.spoiled.add(path)
        if name in self.known:
            return self.known[name]
        value = self.variables[name]
        if isinstance(value, (dict, list)):
            message = f"the variable `{name}` is {kind_of(value)}"
            return self.refuse(value, path, message, "a variable holds one value")
        if name in self.filling:
            chain = " → ".join((*self.filling[self.filling.index(name) :], name))
            message = f"variables that need each other: {chain}"
            return self.refuse(value, ("vars", name), message, "give one of them a value")
        self.filling.append(name)
        self.known[name] = self.text(value, ("vars", name)) if isinstance(value, str) else value
        self.filling.pop()
        if ("vars", name) in self.spoiled:
            self.spoiled.add(path)
        return self.known[name]

    def refuse(self, value: Value, path: Path, message: str, hint: str) -> Value:
        problem = Problem(message, path=path, found=spell_value(value), hint=hint)
        if problem not in self.problems:
            self.problems.append(problem)
        self.spoiled.add(path)
        return value
