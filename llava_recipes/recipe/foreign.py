"""Let a library read files that we did not write: whatever it raises becomes a problem that names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.json_file import read_object, reason_of


@contextmanager
def read_by_library(
    message: str,
    *,
    code: str,
    files: Sequence[Path] = (),
    place: str = "",
    path: KeyPath | None = None,
    hint: str | None = None,
) -> Iterator[None]:
    """Turn every exception of the block into a RecipeError with `message`.

    The block is one call into a library that reads foreign files, or builds from what they say, and nothing
    of ours: libraries raise plain Exception, AttributeError, TypeError and worse for a damaged file. Found is
    the one of `files` that should be JSON and isn't, where there is one; else `place`, or those of `files`
    that exist, and the library's own words.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        found = _damage_of(files) or f"{place or _spell(files)}: {reason_of(error)}"
        raise RecipeError(Problem(message, code=code, path=path, found=found, hint=hint)) from error


def _damage_of(files: Sequence[Path]) -> str | None:
    """What is wrong with the first file that should be a JSON object and is none."""
    for file in files:
        if file.suffix != ".json" or not file.is_file():
            continue
        try:
            read_object(file)
        except RecipeError as error:
            return error.problems[0].found
    return None


def _spell(files: Sequence[Path]) -> str:
    there = [file for file in files if file.is_file()] or files
    if len(there) == 1:
        return str(there[0])
    return f"{there[0].parent} ({', '.join(file.name for file in there)})" if there else "its files"
