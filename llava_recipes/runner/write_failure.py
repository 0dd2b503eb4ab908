"""What to say when a disk takes nothing more: what was not written, what stands, what to do.

Errors of the system, of torch and of safetensors become one problem here; those of reading data do not.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import errno_of_library, name_of_temporary

CODE: Final = "output-cannot-be-written"
_ONLY_WRITING: Final = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
"""No reading fails with these."""
_WORDS: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than allowed",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "its network file system is gone",
    errno.ENOTCONN: "its network file system is gone",
    errno.ENODEV: "its disk is gone",
    errno.ENXIO: "its disk is gone",
    errno.EACCES: "its permissions forbid it",
    errno.EPERM: "its permissions forbid it",
    errno.ENOENT: "its folder was removed",
}
"""What can happen to a folder that could be written to when the run began."""
_SMALLER: Final = "`save_total_limit: 1` keeps one checkpoint"
_ELSEWHERE: Final = "move the run folder to another disk and name it in `output_dir`"
_MEMORY, _NEARLY_FULL = Path("/dev/shm"), 2**20
_LARGER_MEMORY: Final = "enlarge it (`docker run --shm-size=16g`), or lower `dataloader_num_workers`"
_ADVICE: Final = {
    errno.ENOSPC: f"free some space there ({_SMALLER}), or {_ELSEWHERE}",
    errno.EDQUOT: f"remove files of yours there ({_SMALLER}), or {_ELSEWHERE}",
    errno.EROFS: "make it writable again, or copy the run folder to another disk and name it in `output_dir`",
    errno.EFBIG: "raise the limit (`ulimit -f unlimited`), or use a disk that can contain larger files",
    errno.EACCES: "give yourself the permission to write there",
    errno.EPERM: "give yourself the permission to write there",
    errno.ENOENT: "leave the folder in its place while a run writes to it",
}


@contextmanager
def reporting_write_failures(folder: Path, *, stage: KeyPath) -> Iterator[None]:
    """Raise RecipeError instead of an error that says that a run's folder cannot be written to."""
    try:
        yield
    except Exception as error:
        problem = write_problem(error, folder=folder, stage=stage)
        if problem is None:
            raise
        raise RecipeError(problem) from error


def write_problem(error: BaseException, *, folder: Path, stage: KeyPath) -> Problem | None:
    """The problem with a disk that an error, or what caused it, speaks of; None for all other errors."""
    for each in () if isinstance(error, RecipeError) else _chain(error):
        found = _failure(each, folder)
        if found is not None:
            number, file = found
            return _problem(number, file, folder, stage)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _failure(error: BaseException, folder: Path) -> tuple[int, Path | None] | None:
    """The system's number of a failure to write, and the file, where it is known."""
    if not isinstance(error, OSError):
        number = errno_of_library(error, folder)
        return None if number is None else (number, None)
    if error.errno not in _WORDS:
        return None
    file = None
    # The second name is where a file was to be renamed to.
    for name in (error.filename2, error.filename):
        if file is None and isinstance(name, str | bytes | os.PathLike):
            file = Path(os.path.abspath(os.fsdecode(name)))
    if file is None and error.errno == errno.ENOSPC and _is_full(_MEMORY) and not _is_full(folder):
        # Locks and tensors that processes share have no file name.
        file = _MEMORY
    is_ours = file is not None and file.is_relative_to(os.path.abspath(folder))
    if error.errno in _ONLY_WRITING or (is_ours and (error.errno != errno.ENOENT or not folder.exists())):
        return error.errno, file
    return None


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NEARLY_FULL
    except OSError:
        return False


def _problem(number: int, file: Path | None, folder: Path, stage: KeyPath) -> Problem:
    from llava_recipes.train.checkpoints import list_checkpoints

    found = [os.strerror(number)]
    with suppress(OSError):
        usage = shutil.disk_usage(file if file == _MEMORY else (file or folder).parent)
        found.append(f"{usage.free / 1e9:,.1f} GB of {usage.total / 1e9:,.1f} GB are free")
    newest = next(iter(list_checkpoints(folder)), None)
    if newest is None:
        found.append("no checkpoint was saved before")
        then = "then run again"
    else:
        found.append(f"{newest.folder.name} stands")
        then = f"`--resume` then continues from {newest.folder.name}"
    in_memory = file is not None and file.is_relative_to(_MEMORY) and not folder.is_relative_to(_MEMORY)
    advice = (
        _LARGER_MEMORY
        if in_memory
        else _ADVICE.get(number, "check the disk and its mount (`dmesg` says more)")
    )
    return Problem(
        f"{_name(file, folder)} cannot be written: {_WORDS[number]}",
        code=CODE,
        path=(*stage, "output_dir"),
        found="; ".join(found),
        hint=f"{advice}; {then}",
    )


def _name(file: Path | None, folder: Path) -> str:
    """What was to be written: a file or checkpoint by its name in the run folder, another by its path."""
    top = Path(os.path.abspath(folder))
    if file is None or file == top:
        return "the run folder"
    if not file.is_relative_to(top):
        return str(file)
    first = file.relative_to(top).parts[0]
    if first.startswith(".saving-"):
        return first.removeprefix(".saving-")
    return name_of_temporary(first) or first
