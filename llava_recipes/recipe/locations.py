"""Strings that cannot be a path or a hub id, and secrets, which a shared file must not contain."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Final

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.masking import is_secret_name, mask
from llava_recipes.recipe.scalars import Value, Values, spell_value, strings_in

HUB_ID: Final = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
"""`owner/name`; the owner is missing from the ids of the oldest models, such as gpt2."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# `$(command)`, `$1`, `$NAME`, `%NAME%` and `{name}`; a `${` that is left in a path is meant literally.
_REFERENCES: Final = (
    re.compile(r"\$\([^)]*\)?|`[^`]*`|\$[0-9@*]"),
    re.compile(r"\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)"),
    re.compile(r"%(?P<name>[A-Z][A-Z0-9_]*)%"),
    re.compile(r"(?<!\$)\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}"),
)
# The limits of file systems: bytes of one name, and of a whole path.
_MOST_OF_A_NAME: Final = 255
_MOST_OF_A_PATH: Final = 4095

SECRET_HINT: Final = "remove it: a program reads its credentials from the environment"


def check_secrets(value: Value, path: KeyPath) -> Iterator[Problem]:
    """Refuse keys that would put a secret into a shared file; the value itself is never printed."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from check_secrets(entry, (*path, index))
    for key, inner in value.items() if isinstance(value, dict) else ():
        place = (*path, key)
        if is_secret_name(key) and isinstance(inner, str):
            hint = "remove it and set it in the environment, for example HF_TOKEN or WANDB_API_KEY"
            message, code = f"`{key}` looks like a secret; a recipe is shared", "looks-like-a-secret"
            yield Problem(message, code=code, path=place, hint=hint, on_key=True, is_secret=True)
        yield from check_secrets(inner, place)


def check_secret_values(recipe: Values) -> Iterator[Problem]:
    """Refuse values with a password in a URL or a token of a known kind, wherever they are.

    A variable's is reported where it is given, and not again where it is used.
    """
    given = {path: text for path, text in strings_in(recipe) if mask(text) != text}
    of_variables = [text for path, text in given.items() if path[:1] == ("vars",)]
    message = "this contains a secret; a recipe and its run folder are shared"
    for path, text in given.items():
        if path[:1] == ("vars",) or not any(secret in text for secret in of_variables):
            found, code = spell_value(text), "value-contains-secret"
            yield Problem(message, code=code, path=path, found=found, hint=SECRET_HINT, is_secret=True)


def is_web_address(text: str) -> bool:
    """Whether a string starts with a scheme such as https://."""
    return _URL.match(text) is not None


def check_hub_id(value: Value, path: KeyPath) -> Iterator[Problem]:
    """Why a string cannot be a hub id or a folder."""
    hint = "download it and write its folder"
    if isinstance(value, str) and value.startswith(("https://huggingface.co/", "https://hf.co/")):
        name = "/".join(value.rstrip("/").split("/")[3:5])
        hint = f"write `{name}`" if name else hint
    yield from _check_path(value, path, wanted="a hub id or a folder", hint=hint)


def check_local(value: Value, path: KeyPath) -> Iterator[Problem]:
    """Why a string cannot be a path on this machine."""
    yield from _check_path(value, path, wanted="a local path", hint="download it and write its local path")


def _check_path(value: Value, path: KeyPath, *, wanted: str, hint: str) -> Iterator[Problem]:
    if not isinstance(value, str):
        return
    found = spell_value(value)
    if is_web_address(value):
        message = f"`{path[-1]}` must be {wanted}, not a web address"
        yield Problem(message, code="not-a-local-path", path=path, found=found, hint=hint)
        return
    if value.startswith("~"):
        hint = "write an absolute path, or one from the folder where the command runs"
        message = "`~` is not expanded in a recipe"
        yield Problem(message, code="not-a-local-path", path=path, found=found, hint=hint)
    reference = foreign_reference(value)
    if reference is not None:
        message = f"`{reference.group()}` is not computed here"
        hint = (
            "write what it prints, or put it in an environment variable before the command, and declare "
            "that with `env: [NAME]`"
        )
        if name := reference.groupdict().get("name"):
            message = f"`{reference.group()}` is not filled in here: a variable is written `${{NAME}}`"
            hint = (
                f"write `${{{name}}}`, with `env: [{name}]` at the top level for an environment variable, or "
                f"`vars: {{{name}: …}}`"
            )
        yield Problem(message, code="reference-of-another-program", path=path, found=found, hint=hint)
    if _is_too_long(value):
        message = f"a name in `{path[-1]}` is longer than a file name can be"
        hint = f"a name has at most {_MOST_OF_A_NAME} bytes"
        if not _has_a_long_name(value):
            message = f"`{path[-1]}` is longer than a path can be"
            hint = f"a path has at most {_MOST_OF_A_PATH:,} bytes"
        yield Problem(message, code="path-too-long", path=path, found=_length(value), hint=hint)


def foreign_reference(text: str) -> re.Match[str] | None:
    """What a shell or another program would fill in, and a recipe takes literally."""
    return next((found for form in _REFERENCES if (found := form.search(text)) is not None), None)


def check_place(value: str, *, key: str, file: pathlib.Path) -> None:
    """Raise RecipeError for what a file gives as a path under `key`, and no file system can have."""
    found = None
    if _is_too_long(value):
        found = _length(value)
    elif "\0" in value or (value.startswith("~") and os.path.expanduser(value) == value):
        found = spell_value(value, limit=40)
    if found is not None:
        message = f"`{key}` in {file.name} cannot be a path"
        raise RecipeError.of(message, code="place-can-be-no-path", found=f"{file}: {found}")


def _length(text: str) -> str:
    return f"{len(text):,} characters: {spell_value(text, limit=40)}"


def _is_too_long(text: str) -> bool:
    return len(text.encode("utf-8", "replace")) > _MOST_OF_A_PATH or _has_a_long_name(text)


def _has_a_long_name(text: str) -> bool:
    return max(map(len, text.encode("utf-8", "replace").split(b"/"))) > _MOST_OF_A_NAME
