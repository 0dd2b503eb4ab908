"""Write a new file for the user, and never over one that is there unless that is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from llava_recipes.files import write_text
from llava_recipes.recipe.errors import Problem, RecipeError


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write a text file, whole or not at all; raises RecipeError when it is there or cannot be made."""
    try:
        if force:
            write_text(path, text)
            return
        # The name is taken first, so that nothing can appear under it between looking and writing.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            write_text(path, text)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        hint = "choose another with `-o FILE`, or add `--force` to replace it"
        raise RecipeError(Problem(f"{path} is there already", code="file-exists", hint=hint)) from None
    except FileNotFoundError:
        raise RecipeError(
            Problem(
                f"{path}: the folder {path.parent} does not exist",
                code="folder-does-not-exist",
                hint="make it first",
            )
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            Problem(f"{path} cannot be written", code="output-cannot-be-written", found=reason)
        ) from None
