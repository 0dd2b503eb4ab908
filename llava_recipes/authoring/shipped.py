"""Where gallery, templates and schemas lie: beside the package in a checkout, in it once installed."""

from __future__ import annotations

import functools
import os
import re
import shlex
from pathlib import Path

from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.screen import shown

_PACKAGE = Path(__file__).parent.parent
_NOT_IN_A_RECIPE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def gallery_folder() -> Path:
    """The folder of the shipped recipes."""
    return _shipped("gallery", "recipes")


def schema_file() -> Path:
    """The JSON Schema of recipes, as committed."""
    return _shipped("schemas", "schemas") / "recipe.schema.json"


def templates_folder() -> Path:
    """The folder of the templates of `llava-recipe new`."""
    return _PACKAGE / "authoring" / "templates"


def _shipped(in_package: str, in_checkout: str) -> Path:
    packaged = _PACKAGE / in_package
    return packaged if packaged.is_dir() else _PACKAGE.parent / in_checkout


@functools.cache
def readdress(text: str, old: str, output: Path) -> str:
    """A recipe's text for its new place: schema of the editor, and `output` for `old` in its comments.

    Raises RecipeError when the name of `output` cannot stand in a recipe.
    """
    check_words(str(output))
    quoted = shown(shlex.quote(str(output)))
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.startswith("# yaml-language-server"):
            lines[number] = modeline(output) + "\n"
        elif line.startswith("#"):
            lines[number] = re.sub(rf"(?<![\w/]){re.escape(old)}(?!\w)", lambda _: quoted, line)
    return "".join(lines)


def check_words(*words: str) -> None:
    """Raise RecipeError for a name or value that holds what YAML text cannot, such as half a character."""
    for word in words:
        found = _NOT_IN_A_RECIPE.search(word)
        if found:
            message = f"{word!a} holds the character U+{ord(found.group()):04X}, which no recipe can hold"
            raise RecipeError(Problem(message, code="invalid-yaml-character", hint="rename it"))


def modeline(output: Path) -> str:
    """The comment by which an editor finds the schema from `output`.

    It is relative where both lie in one checkout, so that the file can be committed; else it names the
    installed schema.
    """
    schema = schema_file().resolve()
    folder = output.parent.resolve()
    checkout = schema.parent.parent
    place = os.path.relpath(schema, folder) if folder.is_relative_to(checkout) else str(schema)
    return f"# yaml-language-server: $schema={Path(place).as_posix()}"
