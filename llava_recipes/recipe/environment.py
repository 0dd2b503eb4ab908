"""Environment variables in a recipe: only those that it declares, and never a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from llava_recipes.masking import is_secret_name, is_secret_value
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.language import shapes_at
from llava_recipes.recipe.scalars import ScalarError, Value, check_text, resolve_scalar, spell_value
from llava_recipes.recipe.source import Document

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
