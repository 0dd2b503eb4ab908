"""From the text of a script or config to the text of a recipe, and what became of every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_recipes.migrate.combine import Migration
from llava_recipes.migrate.scripts import migrate_script
from llava_recipes.migrate.shell import ReadScript


def migrate(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    only: int | None = None,
    read_beside: ReadScript | None = None,
) -> Migration:
    """The recipe that a file of another program comes to; which program it is, its content tells.

    Nothing is executed. Raises RecipeError with places in the file where it cannot be read.
    """
    return migrate_script(
        text, file, positional=positional, variables=variables, only=only, read_beside=read_beside
    )
