"""Settings in a model's folder, looked through for code before any library reads them; without torch."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator

from llava_recipes.files import MAX_SETTINGS_BYTES, odd_kind, read_settings
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.foreign_code import code_problems

_SETTINGS = ("*config*.json", "plan.json")
"""Settings of the model, its tokenizer, its image processor, its adapters; of a run its plan, which has those
that its recipe wrote out."""


def check_model_folder(folder: pathlib.Path, path: KeyPath) -> None:
    """Raise RecipeError when a folder's settings name code; `path` is the recipe path named in errors."""
    problems = tuple(folder_problems(folder, path))
    if problems:
        raise RecipeError(*problems)


def check_settings(values: object, path: KeyPath, *, file: str) -> None:
    """Raise RecipeError when settings that a library has fetched name code."""
    problems = tuple(code_problems(values, path, file=file))
    if problems:
        raise RecipeError(*problems)


def folder_problems(folder: pathlib.Path, path: KeyPath) -> Iterator[Problem]:
    """A problem for each key that names code, in every file of settings, and for each file that is none."""
    odd = [(entry.path, kind) for entry in _entries(folder) for kind in [odd_kind(entry.path)] if kind]
    for name, kind in odd:
        yield Problem(
            f"the model's folder has {kind} in the place of a file",
            code="not-an-ordinary-file",
            path=path,
            found=name,
            hint="replace it by a file, or remove it",
        )
    if odd:
        # Reading the others may lead to it.
        return
    for file in _settings_files(folder):
        num_bytes = os.path.getsize(file) if os.path.isfile(file) else 0
        if num_bytes > MAX_SETTINGS_BYTES:
            yield Problem(
                f"the model's {file.name} is too large",
                code="settings-too-large",
                path=path,
                found=f"{file}: {num_bytes:,} bytes; settings have at most {MAX_SETTINGS_BYTES:,}",
                hint="fetch the model again",
            )
        else:
            yield from code_problems(_read(file), path, file=str(file))


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        # Whoever needs the folder says what is wrong with it.
        return []


def _settings_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = [file for pattern in _SETTINGS for file in sorted(folder.glob(pattern))]
    # For some versions of transformers the file of another name counts.
    main = _read(folder / "config.json")
    others = main.get("configuration_files") if isinstance(main, dict) else None
    found += [folder / name for name in others if isinstance(name, str)] if isinstance(others, list) else []
    return list(dict.fromkeys(found))


def _read(file: pathlib.Path) -> object:
    try:
        return json.loads(read_settings(file)) if os.path.isfile(file) else None
    except (OSError, ValueError, RecursionError):
        # Whoever needs the file says what is wrong with it.
        return None
