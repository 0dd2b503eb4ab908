"""A new folder that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llava_recipes.files import give_usual_mode
from llava_recipes.recipe.errors import Problem, RecipeError


def check_target(target: Path) -> None:
    """Raise RecipeError unless `target` is absent or an empty folder, in a place that can be written to."""
    hint = "choose another with `-o DIR`"
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RecipeError(
            Problem(f"{target} is there already, and is no folder", code="output-is-not-a-folder", hint=hint)
        )
    if target.is_dir() and any(target.iterdir()):
        names = sorted(entry.name for entry in target.iterdir())
        found = ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
        raise RecipeError(
            Problem(f"the folder {target} is not empty", code="output-not-empty", found=found, hint=hint)
        )
    nearest = target.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise RecipeError(
            Problem(
                f"{target} cannot be made",
                code="output-cannot-be-made",
                found=f"{nearest} is not writable",
                hint=hint,
            )
        )


@contextmanager
def new_folder(target: Path, *, num_bytes: int) -> Iterator[Path]:
    """Give a folder beside `target` to write into; when the block ends well, it takes the name `target`.

    When the block raises, what was written goes. Raises RecipeError when `target` holds something, or when
    the disk has no room for `num_bytes`.
    """
    check_target(target)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.absolute().parent).free
        if free < num_bytes:
            found = f"{free / 2**30:,.1f} GiB free, {num_bytes / 2**30:,.1f} GiB needed"
            raise RecipeError(Problem(f"the disk of {target} has no room", code="disk-full", found=found))
        temporary = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    except OSError as error:
        raise RecipeError(
            Problem(f"{target} cannot be made", code="output-cannot-be-made", found=error.strerror)
        ) from None
    try:
        yield temporary
        give_usual_mode(temporary)
        # Takes the place of an empty folder, and fails over one that is not.
        try:
            temporary.rename(target)
        except OSError as error:
            message = f"something was put into {target} meanwhile"
            raise RecipeError(
                Problem(message, code="output-changed-meanwhile", found=error.strerror)
            ) from None
    # The second is what safetensors makes of a disk that is full.
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            Problem(f"{target} cannot be written", code="output-cannot-be-written", found=str(error))
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
