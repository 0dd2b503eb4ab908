"""From the text of a script or config to the text of a recipe, and what became of every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_recipes.migrate.draft import IsFolder, Migration
from llava_recipes.migrate.scripts import migrate_script
from llava_recipes.migrate.shell import ReadScript
from llava_recipes.migrate.xtuner import migrate_xtuner
from llava_recipes.migrate.yaml_configs import migrate_yaml


def migrate(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    only: int | None = None,
    recipe_file: str = "recipe.yaml",
    read_beside: ReadScript | None = None,
    is_folder: IsFolder = lambda _: False,
    working_folder: str | None = None,
) -> Migration:
    """The recipe that a file of another program comes to; which program it is, its content tells.

    read_beside     finds the files that this one names
    is_folder       whether a path is a folder here
    working_folder  where the script would be started; None where that is not known

    Nothing is executed. Raises RecipeError with places in the file where it cannot be read.
    """

    def read_text(path: str) -> tuple[str, str] | None:
        return read_beside(path, file) if read_beside is not None else None

    ending = file.lower().rpartition(".")[2]
    if ending == "py":
        return migrate_xtuner(text, file, recipe_file=recipe_file, is_folder=is_folder)
    if ending in ("yaml", "yml"):
        return migrate_yaml(text, file, recipe_file=recipe_file, read_text=read_text, is_folder=is_folder)
    return migrate_script(
        text,
        file,
        positional=positional,
        variables=variables,
        only=only,
        recipe_file=recipe_file,
        read_script=read_beside,
        read_text=read_text,
        is_folder=is_folder,
        working_folder=working_folder,
    )
