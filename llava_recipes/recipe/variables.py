"""Fill `${name}` in: variables of the recipe, and those of the environment that it declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.masking import is_secret_name, is_secret_value
from llava_recipes.recipe.language import shapes_at
from llava_recipes.recipe.locations import SECRET_HINT
from llava_recipes.recipe.renames import did_you_mean, nearest
from llava_recipes.recipe.scalars import (
    ScalarError,
    Value,
    as_mapping,
    check_text,
    kind_of,
    resolve_scalar,
    spell_value,
    strings_in,
)
from llava_recipes.recipe.source import Document

MAX_TEXT_CHARACTERS = 100_000
MAX_FILLED_CHARACTERS = 2_000_000
"""Of all strings with a variable together."""
MAX_CHAIN = 32
"""Variables inside variables inside variables."""
MAX_USED = 100
"""Variables that one string may need, directly or through others."""
MAX_ADVISED = 100
"""With more names than this, no other name is suggested."""
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$?\$\{(?P<name>[^{}]*)(?P<end>\}?)")
_PLAIN = "for a literal `${`, write `$${`"
_WRITE_OUT = "write the values of some of them instead"


def fill_variables(document: Document, environment: Mapping[str, str], *, used: Iterable[str]) -> Document:
    """The document with every `${name}` filled in; it keeps its problems.

    used  the names that count as used though nothing in the document may refer to them
    """
    declarations = list(_check_declarations(document))
    reported = frozenset(problem.path for problem in declarations if problem.path is not None)
    # A name that may not be read is not read, and its uses are not reported as well.
    filling = _Filling(replace(document, spoiled=document.spoiled | reported), environment)
    root = filling.fill(document.root, ())
    used = references_in(document.root).union(used)
    # A reference with a slip is reported as such; the variable that was meant is not reported as unused too.
    known = (*filling.variables, *filling.declared)
    if len(known) <= MAX_ADVISED:
        used |= {near for name in used if name not in known and (near := nearest(name, known)) is not None}
    unused = [problem for problem in _unused(document, used) if problem.path not in reported]
    return replace(
        document,
        root=root,
        problems=(*document.problems, *declarations, *filling.problems, *unused),
        spoiled=frozenset(filling.spoiled),
        uses={path: tuple(names) for path, names in filling.uses.items()},
    )


def references_in(value: Value) -> set[str]:
    """Every name that a string anywhere inside a value refers to."""
    found = (reference for _, text in strings_in(value) for reference in _REFERENCE.finditer(text))
    return {reference["name"].strip() for reference in found if not reference.group().startswith("$$")}


def _declared(root: Value) -> dict[str, KeyPath]:
    """The environment variables that a recipe declares, each with its place."""
    names = as_mapping(root).get("env")
    if isinstance(names, str):
        # The schema reports that it should be a list; what was meant is clear.
        return {names: ("env",)}
    entries = list(enumerate(names)) if isinstance(names, list) else []
    return {name: ("env", index) for index, name in reversed(entries) if isinstance(name, str)}


def _check_declarations(document: Document) -> Iterator[Problem]:
    """What is wrong with the names under `env`."""
    given = as_mapping(document.root).get("env")
    names = given if isinstance(given, list) else []
    for index, name in enumerate(names):
        path, found = ("env", index), None
        if not isinstance(name, str) or path in document.spoiled:
            continue
        if is_secret_name(name):
            code, hint = "looks-like-a-secret", SECRET_HINT
            message = f"`{name}` looks like a secret; a recipe and its run folder are shared"
        elif not VARIABLE_NAME.fullmatch(name):
            code, found = "invalid-environment-variable-name", spell_value(name)
            message = "this cannot be the name of an environment variable"
            hint = "use letters, digits and `_`, not starting with a digit; the name alone, without `$`"
        elif names.index(name) < index:
            code, message, hint = "name-given-twice", f"`env` lists `{name}` twice", "remove one of them"
        elif _is_variable_too(name, path, document):
            code, message = "name-in-env-and-vars", f"`{name}` is in both `env` and `vars`"
            hint = f"rename one of them, so that `${{{name}}}` means one thing"
        else:
            continue
        yield Problem(message, code=code, path=path, found=found, hint=hint)


def _is_variable_too(name: str, path: KeyPath, document: Document) -> bool:
    """Whether one and the same file has both; a variable of a file above simply takes the place."""
    mark = document.key_marks.get(("vars", name))
    return mark is not None and mark.file == getattr(document.locate(path), "file", None)


def _unused(document: Document, used: set[str]) -> Iterator[Problem]:
    """Variables that nothing uses. Those of a parent may be meant for its other children."""
    places: dict[KeyPath, str] = {
        ("vars", name): name for name in as_mapping(as_mapping(document.root).get("vars"))
    }
    places |= {path: name for name, path in _declared(document.root).items() if path != ("env",)}
    for path, name in places.items():
        is_own = path[0] == "vars"
        mark = document.locate(path, on_key=is_own)
        if name in used or (mark is not None and mark.file in document.parents):
            continue
        message = f"the {'' if is_own else 'environment '}variable `{name}` is never used"
        hint = f"write `${{{name}}}` where it belongs, or remove it"
        yield Problem(message, code="name-is-not-used", path=path, hint=hint, on_key=is_own)


def _read(name: str, environment: Mapping[str, str], path: KeyPath, *, alone: bool) -> Value | Problem:
    """The value of a declared variable, or why there is none.

    An environment has only strings. One that is a whole value is read as what its place needs.
    """
    text, variable = environment.get(name), f"the environment variable `{name}`"
    code, hint = "environment-variable-not-usable", None
    if text is None:
        code, message = "environment-variable-not-set", f"{variable} is not set"
        hint = f"set it before the command, as in `{name}=… llava-recipe …`, or `--set vars.{name}=…`"
    elif is_secret_value(text, name):
        code = "environment-variable-contains-secret"
        message = f"{variable} contains a secret; a recipe's values are shared"
        hint = "use a variable without one: a program reads its credentials from the environment"
    else:
        try:
            check_text(text)
            text.encode("utf-8")
            return text if not alone or str in shapes_at(path) else resolve_scalar(text)
        except ScalarError as error:
            message = f"{variable} cannot be used: {error}"
        except UnicodeEncodeError:
            message = f"{variable} is not UTF-8"
    return Problem(message, code=code, path=path, hint=hint)


class _Filling:
    """Fill variables in, everywhere in one document."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self.document, self.environment = document, environment
        self.declared = _declared(document.root)
        self.variables = as_mapping(as_mapping(document.root).get("vars"))
        self.uses: dict[KeyPath, list[str]] = {}
        self.problems: dict[Problem, None] = {}
        self.spoiled = set(document.spoiled)
        self.known: dict[str, Value] = {}
        self.chain: list[str] = []
        self.num_filled_characters = 0

    def fill(self, value: Value, path: KeyPath) -> Value:
        """A value with its variables filled in; raises RecipeError when they make the recipe too large."""
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
            message = f"the strings of the recipe grow beyond {MAX_FILLED_CHARACTERS:,} characters"
            mark, hint = self.document.locate(path), "use shorter variables, or fewer"
            raise RecipeError.of(message, code="recipe-too-large", path=path, mark=mark, hint=hint)
        return filled

    def text(self, value: str, path: KeyPath) -> Value:
        """A string with its references filled in; a single reference takes the variable's type."""
        parts: list[str] = []
        end = 0
        for found in _REFERENCE.finditer(value):
            parts.append(value[end : found.start()])
            end = found.end()
            if found.group().startswith("$$"):
                parts.append(found.group()[1:])
                continue
            if not found["end"]:
                code, hint = "variable-is-not-closed", f"close it with `}}`; {_PLAIN}"
                return self.refuse(value, path, "`${` is not closed", hint, code=code)
            filled = self.reference(found["name"].strip(), value, path)
            if path in self.spoiled or found.span() == (0, len(value)):
                return filled
            parts.append(filled if isinstance(filled, str) else _in_text(filled))
            if sum(map(len, parts)) > MAX_TEXT_CHARACTERS:
                message = f"the string grows beyond {MAX_TEXT_CHARACTERS:,} characters"
                return self.refuse(value, path, message, "use fewer variables inside variables")
        return "".join((*parts, value[end:]))

    def reference(self, name: str, value: str, path: KeyPath) -> Value:
        """The value of a variable that a string refers to; the string itself where there is none."""
        if name in self.variables:
            filled = self.variable(name, path)
            self.use(path, name, *self.uses.get(("vars", name), ()))
            if len(self.uses[path]) > MAX_USED:
                del self.uses[path]
                return self.refuse(
                    value, path, f"the string needs more than {MAX_USED} variables", _WRITE_OUT
                )
            return filled
        if name not in self.declared:
            message, hint = f"unknown variable `${{{name}}}`", self.advice(name)
            return self.refuse(value, path, message, hint, code="unknown-variable")
        self.use(path, name)
        if self.declared[name] not in self.spoiled:
            alone = _REFERENCE.fullmatch(value) is not None
            read = _read(name, self.environment, path, alone=alone)
            if not isinstance(read, Problem):
                return read
            self.problems[read] = None
        self.spoiled.add(path)
        return value

    def use(self, path: KeyPath, *names: str) -> None:
        self.uses[path] = list(dict.fromkeys((*self.uses.get(path, ()), *names)))

    def advice(self, name: str) -> str:
        """What to write instead of a reference to an unknown variable."""
        known = (*self.variables, *self.declared)
        near = did_you_mean(name, known) if len(known) <= MAX_ADVISED else None
        if near is not None:
            return near
        if name in self.environment:
            return f"to take it from the environment, write `env: [{name}]` at the top level"
        names = ", ".join(f"`{known}`" for known in list(self.variables)[:MAX_ADVISED])
        start = f"`vars` has {names}" if names else f"write `vars: {{{name}: …}}` at the top level"
        return f"{start}; {_PLAIN}"

    def variable(self, name: str, path: KeyPath) -> Value:
        """The value of a variable of the recipe, filled in once; `path` needs it."""
        place, value = ("vars", name), self.variables[name]
        if place in self.spoiled:
            self.spoiled.add(path)
        if name in self.known:
            return self.known[name]
        if isinstance(value, (dict, list)):
            message, hint = f"the variable `{name}` is {kind_of(value)}", "set it to a single value"
            return self.refuse(value, path, message, hint, code="variable-holds-many-values")
        if name in self.chain:
            message = f"circular variables: {' → '.join((*self.chain[self.chain.index(name) :], name))}"
            hint = "write one of them without `${…}`"
            return self.refuse(value, place, message, hint, code="variables-circular")
        if len(self.chain) >= MAX_CHAIN:
            message = f"variables refer to other variables more than {MAX_CHAIN} levels deep"
            return self.refuse(value, place, message, _WRITE_OUT)
        self.chain.append(name)
        self.known[name] = self.text(value, place) if isinstance(value, str) else value
        self.chain.pop()
        if place in self.spoiled:
            self.spoiled.add(path)
        return self.known[name]

    def refuse(
        self, value: Value, path: KeyPath, message: str, hint: str, *, code: str = "recipe-too-large"
    ) -> Value:
        """Report a problem at a path, which is then spoiled; the value as it was written."""
        self.problems[Problem(message, code=code, path=path, found=spell_value(value), hint=hint)] = None
        self.spoiled.add(path)
        return value


def _in_text(value: Value) -> str:
    """A value inside a string: `runs/${rate}` keeps naming `runs/0.001`, however the number is written."""
    if isinstance(value, float):
        return str(value).replace("e-0", "e-").replace("e+", "e")
    return spell_value(value)
