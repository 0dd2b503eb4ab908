"""Where things lie: texts that can be no hub id or path, and secrets, which a shared file must not have."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Final

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.masking import is_secret_name, mask
from llava_recipes.recipe.scalars import Value, Values, spell_value, strings_in

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# `$(command)`, `$1`, `$NAME`, `%NAME%` and `{name}`; a `${` that is still in a path is meant by the letter.
_REFERENCES: Final = (
    re.compile(r"\$\([^)]*\)?|`[^`]*`|\$[0-9@*]"),
    re.compile(r"\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)"),
    re.compile(r"%(?P<name>[A-Z][A-Z0-9_]*)%"),
    re.compile(r"(?<!\$)\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}"),
)
# What file systems take: bytes of one name, and of a whole path.
_MOST_OF_A_NAME: Final = 255
_MOST_OF_A_PATH: Final = 4095


def check_secrets(value: Value, path: KeyPath) -> Iterator[Problem]:
    """Refuse keys that would put a secret into a file that is shared; the value itself is never printed."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from check_secrets(entry, (*path, index))
    for key, inner in value.items() if isinstance(value, dict) else ():
        if is_secret_name(key) and isinstance(inner, str):
            hint = "remove it and set it in the environment, for example HF_TOKEN or WANDB_API_KEY"
            message = f"`{key}` looks like a secret; a recipe is shared"
            yield Problem(
                message, code="looks-like-a-secret", path=(*path, key), hint=hint, on_key=True, is_secret=True
            )
        yield from check_secrets(inner, (*path, key))


def check_secret_values(recipe: Values) -> Iterator[Problem]:
    """Refuse values with a password in a URL or a token of a known kind, wherever they stand.

    A variable's is reported where it is given, and not again where it is used.
    """
    given = {path: text for path, text in strings_in(recipe) if mask(text) != text}
    of_variables = [text for path, text in given.items() if path[:1] == ("vars",)]
    for path, text in given.items():
        if path[:1] == ("vars",) or not any(secret in text for secret in of_variables):
            yield Problem(
                "this contains a secret; a recipe and its run folder are shared",
                code="value-contains-secret",
                path=path,
                found=spell_value(text),
                hint="remove it: what a program needs to log in, it reads from the environment itself",
                is_secret=True,
            )


def is_web_address(text: str) -> bool:
    """Whether a text begins with a scheme such as https://."""
    return _URL.match(text) is not None


def check_hub_id(value: Value, path: KeyPath) -> Iterator[Problem]:
    """What keeps a text from being a hub id or a folder."""
    hint = "download it and write its folder"
    if isinstance(value, str) and value.startswith(("https://huggingface.co/", "https://hf.co/")):
        name = "/".join(value.rstrip("/").split("/")[3:5])
        hint = f"write `{name}`" if name else hint
    yield from _check_path(value, path, wanted="a hub id or a folder", hint=hint)


def check_place(value: str, *, key: str, file: pathlib.Path) -> None:
    """Raise RecipeError for what a file names as a place under `key`, and no file system can have."""
    found = None
    if _is_too_long(value):
        found = f"{len(value):,} letters: {spell_value(value, limit=40)}"
    elif "\0" in value or (value.startswith("~") and os.path.expanduser(value) == value):
        found = spell_value(value, limit=40)
    if found is not None:
        message = f"`{key}` in {file.name} can be no path"
        raise RecipeError.of(message, code="place-can-be-no-path", found=f"{file}: {found}")


def _is_too_long(text: str) -> bool:
    written = text.encode("utf-8", "replace")
    return len(written) > _MOST_OF_A_PATH or max(map(len, written.split(b"/"))) > _MOST_OF_A_NAME


def check_local(value: Value, path: KeyPath) -> Iterator[Problem]:
    """What keeps a text from being a path on this machine."""
    yield from _check_path(value, path, wanted="a local path", hint="download it and write where it lies")


def _check_path(value: Value, path: KeyPath, *, wanted: str, hint: str) -> Iterator[Problem]:
    if not isinstance(value, str):
        return
    if is_web_address(value):
        message, found = f"`{path[-1]}` is {wanted}, not a web address", spell_value(value)
        yield Problem(message, code="not-a-local-path", path=path, found=found, hint=hint)
        return
    if value.startswith("~"):
        hint = "write the whole path, or one from the folder where the command is run"
        yield Problem(
            "`~` is not expanded in a recipe",
            code="not-a-local-path",
            path=path,
            found=spell_value(value),
            hint=hint,
        )
    yield from _check_references(value, path)
    if _is_too_long(value):
        yield Problem(
            f"`{path[-1]}` is longer than a path can be",
            code="path-too-long",
            path=path,
            found=f"{len(value):,} letters: {spell_value(value, limit=40)}",
            hint=f"no name in a path has more than {_MOST_OF_A_NAME} bytes",
        )


def foreign_reference(text: str) -> re.Match[str] | None:
    """What a shell or another program fills in, and a recipe takes by the letter."""
    return next((found for form in _REFERENCES if (found := form.search(text)) is not None), None)


def _check_references(value: str, path: KeyPath) -> Iterator[Problem]:
    reference = foreign_reference(value)
    if reference is None:
        return
    name = reference.groupdict().get("name")
    yield Problem(
        f"`{reference.group()}` is not filled in here: a variable is written `${{NAME}}`"
        if name
        else f"`{reference.group()}` is not computed here",
        code="reference-of-another-program",
        path=path,
        found=spell_value(value),
        hint=f"write `${{{name}}}`, with `env: [{name}]` at the top level where it is a variable of the "
        f"environment, or `vars: {{{name}: …}}`"
        if name
        else "write what it gives; or put it in an environment variable before the command, and declare that "
        "with `env: [NAME]`",
    )
