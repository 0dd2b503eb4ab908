"""Read a JSON file that somebody else may have damaged: its object, or a problem that names it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue, ValidationError

from llava_recipes.files import read_settings
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError

_MAY_BE_UNPAIRED = re.compile(r"\\u[dD][89a-fA-F]")
MOST_CHARACTERS = 300
"""Of what a library says: it may quote the whole file."""

_MOST_SHOWN = 120


def read_object(file: Path, *, path: KeyPath | None = None, hint: str | None = None) -> dict[str, JsonValue]:
    """The object that a JSON file contains; `path` is the recipe path that errors point to.

    Raises RecipeError, with the file and the reason, when it cannot be read or contains something else.
    """
    try:
        text = read_settings(file)
    except (OSError, ValueError) as error:
        raise unreadable(file, error, path=path, hint=hint) from error
    return parse_object(text, file, path=path, hint=hint)


def parse_object(
    text: str, file: Path, *, path: KeyPath | None = None, hint: str | None = None
) -> dict[str, JsonValue]:
    """The object in the text of a JSON file; raises as `read_object` does."""
    try:
        value = json.loads(text)
        if _MAY_BE_UNPAIRED.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"{file}:{error.lineno}:{error.colno}: {error.msg}"
        message = f"{file.name} is not well-formed JSON"
        raise RecipeError(
            Problem(message, code="not-well-formed-json", path=path, found=place, hint=hint)
        ) from error
    except (ValueError, RecursionError) as error:
        raise unreadable(file, error, path=path, hint=hint) from error
    if not isinstance(value, dict):
        message = f"{file.name} must hold a mapping"
        found = f"{file} holds {kind_of(value)}"
        raise RecipeError(Problem(message, code="file-is-not-a-mapping", path=path, found=found, hint=hint))
    return value


@contextmanager
def made_of(file: Path, *, hint: str | None = None) -> Iterator[None]:
    """Turn what a schema has against the values of a file into a RecipeError that names both."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        found = f"{file}: {place}: {first['msg']}" if place else f"{file}: {first['msg']}"
        raise _refusal(file, found, hint=hint) from error


def unreadable(
    file: Path, error: Exception, *, path: KeyPath | None = None, hint: str | None = None
) -> RecipeError:
    """What to raise where reading a file has failed: the file, and the reason in short."""
    return _refusal(file, f"{file}: {reason_of(error)}", path=path, hint=hint)


def _refusal(file: Path, found: str, *, path: KeyPath | None = None, hint: str | None = None) -> RecipeError:
    message = f"{file.name} cannot be read"
    return RecipeError(Problem(message, code="file-cannot-be-read", path=path, found=found, hint=hint))


def reason_of(error: Exception) -> str:
    """Why reading failed, in one short line: libraries quote files of any length."""
    if isinstance(error, UnicodeEncodeError):
        return "an unpaired surrogate (invalid Unicode)"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    if isinstance(error, RecursionError):
        return "lists or mappings are nested too deeply"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    words = str(error).strip()
    first = words.splitlines()[0].strip() if words else ""
    if isinstance(error, KeyError):
        first = f"no key {first}"
    if not first:
        return type(error).__name__
    return first if len(first) <= MOST_CHARACTERS else first[:MOST_CHARACTERS] + " …"


def in_short(value: object) -> str:
    """A value from a file in a message: as JSON, and short."""
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + " …"


def kind_of(value: object) -> str:
    """What a JSON value is, for a message."""
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "a single value"
