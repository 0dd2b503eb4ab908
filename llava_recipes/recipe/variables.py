"""Fill `${name}` in: variables of the recipe, and those of the environment that it declares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.masking import is_secret_name, is_secret_value
from llava_recipes.recipe.language import shapes_at
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.scalars import (
    ScalarError,
    Value,
    check_text,
    kind_of,
    resolve_scalar,
    spell_value,
    strings_in,
)
from llava_recipes.recipe.source import Document

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MAX_TEXT_CHARACTERS = 100_000
MAX_FILLED_CHARACTERS = 2_000_000
"""Of all texts with a variable together."""
MAX_CHAIN = 32
"""Variables inside variables inside variables."""
MAX_USED = 100
"""Variables that one text may need, directly or through others."""
MAX_ADVISED = 100
"""With more names than this, none is suggested in the place of another."""
_REFERENCE = re.compile(r"\$?\$\{(?P<name>[^{}]*)(?P<end>\}?)")
_PLAIN = "`$${` stands for a plain `${`"


def declared(root: Value) -> dict[str, KeyPath]:
    """The environment variables that a recipe declares, each with its place."""
    names = root.get("env") if isinstance(root, dict) else None
    if isinstance(names, str):
        # The schema tells that it should be a list; what was meant is clear.
        return {names: ("env",)}
    entries = list(enumerate(names)) if isinstance(names, list) else []
    return {name: ("env", index) for index, name in reversed(entries) if isinstance(name, str)}


def check_declarations(document: Document) -> Iterator[Problem]:
    """What is wrong with the names under `env`."""
    root = document.root
    given = root.get("env") if isinstance(root, dict) else None
    names = given if isinstance(given, list) else []
    for index, name in enumerate(names):
        path: KeyPath = ("env", index)
        if not isinstance(name, str) or path in document.spoiled:
            continue
        if is_secret_name(name):
            hint = "remove it: what a program needs to log in, it reads from the environment itself"
            message = f"`{name}` looks like a secret; a recipe and its run folder are shared"
            yield Problem(message, code="looks-like-a-secret", path=path, hint=hint)
        elif not _NAME.fullmatch(name):
            hint = "letters, digits and `_`, not starting with a digit; the name alone, without `$`"
            yield Problem(
                "this cannot be the name of an environment variable",
                code="invalid-environment-variable-name",
                path=path,
                found=spell_value(name),
                hint=hint,
            )
        elif names.index(name) < index:
            yield Problem(
                f"`env` names `{name}` twice", code="name-given-twice", path=path, hint="remove one of them"
            )
        elif _is_variable_too(name, path, document):
            hint = f"rename one of them, so that `${{{name}}}` means one thing"
            yield Problem(
                f"`{name}` is in `env` and in `vars`", code="name-in-env-and-vars", path=path, hint=hint
            )


def _is_variable_too(name: str, path: KeyPath, document: Document) -> bool:
    """Whether one and the same file says both; a variable of a file above simply takes the place."""
    mark = document.key_marks.get(("vars", name))
    return mark is not None and mark.file == getattr(document.locate(path), "file", None)


def read_variable(
    name: str, environment: Mapping[str, str], path: KeyPath, *, alone: bool
) -> Value | Problem:
    """The value of a declared variable, or why there is none.

    An environment holds texts alone. One that is a whole value is read as what is wanted at its place.
    """
    text = environment.get(name)
    if text is None:
        hint = f"set it before the command, as in `{name}=… llava-recipe …`, or `--set vars.{name}=…`"
        return Problem(
            f"the environment variable `{name}` is not set",
            code="environment-variable-not-set",
            path=path,
            hint=hint,
        )
    if is_secret_value(text, name):
        return Problem(
            f"the environment variable `{name}` contains a secret; a recipe's values are shared",
            code="environment-variable-contains-secret",
            path=path,
            hint="use a variable without it: what a program needs to log in, it reads from the environment",
        )
    try:
        check_text(text)
        text.encode("utf-8")
        return text if not alone or str in shapes_at(path) else resolve_scalar(text)
    except ScalarError as error:
        return Problem(
            f"the environment variable `{name}` cannot be used: {error}",
            code="environment-variable-not-usable",
            path=path,
        )
    except UnicodeEncodeError:
        return Problem(
            f"the environment variable `{name}` is not UTF-8",
            code="environment-variable-not-usable",
            path=path,
        )


def references_in(value: Value) -> set[str]:
    """Every name that a text anywhere inside a value refers to."""
    found = (reference for _, text in strings_in(value) for reference in _REFERENCE.finditer(text))
    return {reference["name"].strip() for reference in found if not reference.group().startswith("$$")}


class Filling:
    """Fill variables in, everywhere in one document."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self.document, self.environment = document, environment
        self.declared = declared(document.root)
        self.uses: dict[KeyPath, list[str]] = {}
        root = document.root
        variables = root.get("vars") if isinstance(root, dict) else None
        self.variables: dict[str, Value] = variables if isinstance(variables, dict) else {}
        self.told: dict[Problem, None] = {}
        self.spoiled = set(document.spoiled)
        self.known: dict[str, Value] = {}
        self.filling: list[str] = []
        self.num_filled_characters = 0

    def fill(self, value: Value, path: KeyPath) -> Value:
        if isinstance(value, dict):
            return {key: self.fill(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.fill(inner, (*path, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        is_variable = len(path) == 2 and path[0] == "vars"
        filled = self.variable(str(path[1]), path) if is_variable else self.text(value, path)
        self.num_filled_characters += len(filled) if isinstance(filled, str) else 0
        if self.num_filled_characters > MAX_FILLED_CHARACTERS:
            message = f"the texts of the recipe grow beyond {MAX_FILLED_CHARACTERS:,} characters"
            hint = "use shorter variables, or fewer"
            raise RecipeError.of(
                message, code="recipe-too-large", path=path, mark=self.document.locate(path), hint=hint
            )
        return filled

    def text(self, value: str, path: KeyPath) -> Value:
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
                return self.refuse(
                    value, path, "`${` without its `}`", f"close it; {_PLAIN}", code="variable-is-not-closed"
                )
            filled = self.reference(found["name"].strip(), value, path)
            if path in self.spoiled or found.span() == (0, len(value)):
                return filled
            parts.append(filled if isinstance(filled, str) else _in_text(filled))
            if sum(map(len, parts)) > MAX_TEXT_CHARACTERS:
                message = f"the text grows beyond {MAX_TEXT_CHARACTERS:,} characters"
                return self.refuse(
                    value,
                    path,
                    message,
                    "use fewer variables inside variables",
                    code="recipe-too-large",
                )
        return "".join((*parts, value[end:]))

    def reference(self, name: str, value: str, path: KeyPath) -> Value:
        if name in self.variables:
            filled = self.variable(name, path)
            self.use(path, name, *self.uses.get(("vars", name), ()))
            if len(self.uses[path]) > MAX_USED:
                del self.uses[path]
                message = f"a text that needs more than {MAX_USED} variables"
                return self.refuse(value, path, message, "write some of them out", code="recipe-too-large")
            return filled
        if name in self.declared:
            self.use(path, name)
            return self.from_environment(name, value, path)
        return self.refuse(
            value, path, f"no variable for `${{{name}}}`", self.advice(name), code="unknown-variable"
        )

    def use(self, path: KeyPath, *names: str) -> None:
        self.uses[path] = list(dict.fromkeys((*self.uses.get(path, ()), *names)))

    def from_environment(self, name: str, value: str, path: KeyPath) -> Value:
        if self.declared[name] not in self.spoiled:
            alone = _REFERENCE.fullmatch(value) is not None
            read = read_variable(name, self.environment, path, alone=alone)
            if not isinstance(read, Problem):
                return read
            self.told[read] = None
        self.spoiled.add(path)
        return value

    def advice(self, name: str) -> str:
        """What to write instead of a reference to nothing."""
        known = (*self.variables, *self.declared)
        near = did_you_mean(name, known) if len(known) <= MAX_ADVISED else None
        if near is not None:
            return near
        if name in self.environment:
            return f"to take it from the environment, write `env: [{name}]` at the top level"
        names = ", ".join(f"`{known}`" for known in list(self.variables)[:MAX_ADVISED])
        start = f"`vars` holds {names}" if names else f"write `vars: {{{name}: …}}` at the top level"
        return f"{start}; {_PLAIN}"

    def variable(self, name: str, path: KeyPath) -> Value:
        if ("vars", name) in self.spoiled:
            self.spoiled.add(path)
        if name in self.known:
            return self.known[name]
        value = self.variables[name]
        if isinstance(value, (dict, list)):
            message = f"the variable `{name}` is {kind_of(value)}"
            return self.refuse(
                value, path, message, "a variable holds one value", code="variable-holds-many-values"
            )
        if name in self.filling:
            chain = " → ".join((*self.filling[self.filling.index(name) :], name))
            message = f"variables that need each other: {chain}"
            return self.refuse(
                value, ("vars", name), message, "give one of them a value", code="variables-circular"
            )
        if len(self.filling) >= MAX_CHAIN:
            message = f"variables inside variables, more than {MAX_CHAIN} deep"
            return self.refuse(
                value,
                ("vars", name),
                message,
                "write some of them out",
                code="recipe-too-large",
            )
        self.filling.append(name)
        self.known[name] = self.text(value, ("vars", name)) if isinstance(value, str) else value
        self.filling.pop()
        if ("vars", name) in self.spoiled:
            self.spoiled.add(path)
        return self.known[name]

    def refuse(self, value: Value, path: KeyPath, message: str, hint: str, *, code: str) -> Value:
        self.told[Problem(message, code=code, path=path, found=spell_value(value), hint=hint)] = None
        self.spoiled.add(path)
        return value


def _in_text(value: Value) -> str:
    """A value inside a text: `runs/${rate}` keeps naming `runs/0.001`, however the number is written."""
    return (
        str(value).replace("e-0", "e-").replace("e+", "e") if isinstance(value, float) else spell_value(value)
    )
