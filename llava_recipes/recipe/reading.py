"""Read a recipe file as text: bounded, UTF-8, and nothing that YAML cannot hold."""

from __future__ import annotations

import codecs
import os
import re

from llava_recipes.files import NotOrdinary, open_ordinary
from llava_recipes.recipe.errors import Mark, Problem, RecipeError
from llava_recipes.recipe.spelling import nearest
from llava_recipes.recipe.syntax import mark_at, split_lines

MAX_BYTES = 1_000_000
ENDINGS = (".yaml", ".yml")

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_file(file: str, *, kind: str = "recipe", max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a recipe, or of another `kind` of file; raises RecipeError where it cannot be read.

    That is when it is missing, a folder or no ordinary file, or larger than `max_bytes`.
    """
    whole = Mark(file, 0, 0)
    try:
        with open_ordinary(file) as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        near = nearest_file(file)
        hint = f'did you mean "{os.path.join(os.path.dirname(file), near)}"?' if near else None
        raise RecipeError(Problem("no such file", code="no-such-file", mark=whole, hint=hint)) from None
    except IsADirectoryError:
        hint = f"name a file in it, or {file.rstrip('/')}/*.yaml" if kind == "recipe" else "name a file in it"
        message = f"this is a folder; a {kind} is a file"
        raise RecipeError(Problem(message, code="path-is-a-folder", mark=whole, hint=hint)) from None
    except NotOrdinary as error:
        hint = f"save the {kind} in a file, and name that"
        raise RecipeError(
            Problem(
                f"this is {error.kind}; a {kind} is an ordinary file",
                code="not-an-ordinary-file",
                mark=whole,
                hint=hint,
            )
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            Problem("the file cannot be read", code="file-cannot-be-read", mark=whole, found=reason)
        ) from None
    if len(data) > max_bytes:
        message = f"the file is larger than {max_bytes:,} bytes; this is no {kind}"
        raise RecipeError(Problem(message, code="file-too-large", mark=whole))
    return data


def nearest_file(file: str) -> str | None:
    """The name of the YAML file in the same folder that was probably meant."""
    folder, name = os.path.split(file)
    try:
        return nearest(name, [entry for entry in os.listdir(folder or ".") if entry.endswith(ENDINGS)])
    except (OSError, ValueError):
        return None


def decode(data: bytes, file: str) -> str:
    """The text of UTF-8 bytes, without a byte order mark; raises RecipeError for anything else."""
    for signature, encoding in _OTHER_ENCODINGS:
        if data.startswith(signature):
            raise _not_utf8(Mark(file, 0, 0), encoding)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lines = split_lines(data[: error.start].decode("utf-8-sig", "replace"))
        mark = mark_at(file, lines, len(lines) - 1, len(lines[-1]))
        raise _not_utf8(mark, f"byte 0x{data[error.start]:02X}") from None
    strange = _NOT_TEXT.search(text)
    if strange:
        line = len(split_lines(text[: strange.start()])) - 1
        column = len(split_lines(text[: strange.start()])[-1])
        raise RecipeError(
            Problem(
                "a character that YAML text cannot hold",
                code="invalid-yaml-character",
                mark=mark_at(file, split_lines(text), line, column),
                found=f"U+{ord(strange.group()):04X}",
                hint="remove it; is this a binary file?",
            )
        )
    return text


def _not_utf8(mark: Mark, found: str) -> RecipeError:
    return RecipeError(
        Problem(
            "the file is not UTF-8", code="file-not-text", mark=mark, found=found, hint="save it as UTF-8"
        )
    )
