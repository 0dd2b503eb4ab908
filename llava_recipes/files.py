"""Open ordinary files only, and write them so that a reader sees the old one or the whole new one.

A named pipe, a terminal or /dev/zero would keep a reader for ever, and files of /proc hold secrets.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from llava_recipes.errors import RecipeError

MAX_SETTINGS_BYTES = 2**26
"""Largest file of settings that is read; the largest that models come with have some megabytes."""

_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX

_SYSTEM = ("/proc", "/sys", "/dev")
_MEMORY = "/dev/shm"
"""Below /dev, and a place for ordinary files."""
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_OF_THE_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip


class NotOrdinary(OSError):
    """A path leads to what is no ordinary file; `strerror` says to what."""

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        super().__init__(errno.EINVAL, f"{kind}, not an ordinary file", os.fspath(path))
        self.kind = kind


def open_ordinary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an ordinary file for reading, itself or through links; never waits for what isn't one.

    Raises NotOrdinary for pipes, sockets, devices and files of the system, OSError or ValueError as `open`.
    """
    # Looked at before, since opening a device may do something; and after, since the path may change between.
    _refuse(path, os.stat(path))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _refuse(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the folder of `~` written out; that of a user who isn't known stays as it is."""
    return Path(os.path.expanduser(path))


def real_path(path: str | os.PathLike[str]) -> Path:
    """The whole path behind all links. One that leads in a circle stays, for whoever opens it to report."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        # A zero byte, which no path has.
        return Path(path)


def read_settings(path: str | os.PathLike[str]) -> str:
    """The text of a file of settings. Raises as `open_ordinary`, and OSError where it is far too large."""
    with open_ordinary(path) as file:
        data = file.read(MAX_SETTINGS_BYTES + 1)
    if len(data) > MAX_SETTINGS_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_SETTINGS_BYTES:,} bytes", os.fspath(path))
    return data.decode("utf-8")


def odd_kind(path: str | os.PathLike[str]) -> str | None:
    """What a path leads to where that is neither a folder nor an ordinary file; None where it is, or nothing.

    For a library that opens the path itself.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return _kind(path, found)


def system_folder(path: str | os.PathLike[str]) -> str | None:
    """The folder of the system's own that a path leads into, or None. Nothing need be there."""
    real = os.path.realpath(path)
    if real.startswith(f"{_MEMORY}/"):
        return None
    return next((folder for folder in _SYSTEM if real == folder or real.startswith(f"{folder}/")), None)


def _refuse(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = _kind(path, found)
    if kind is not None:
        raise NotOrdinary(path, kind)


def _kind(path: str | os.PathLike[str], found: os.stat_result) -> str | None:
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            return name
    if not stat.S_ISREG(found.st_mode):
        return None
    folder = system_folder(path) or _mounted().get(found.st_dev)
    return f"a file of the system in {folder}" if folder is not None else None


@lru_cache(maxsize=1)
def _mounted() -> dict[int, str]:
    """The system's file systems by their number: they may be mounted under other names too."""
    return {os.stat(folder).st_dev: folder for folder in _SYSTEM[:2] if os.path.ismount(folder)}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, flush it to disk and rename it there.

    When the block raises, the temporary file goes and what stood at `path` stays. Raises NotOrdinary where a
    pipe or a device stands there, or the folder is one of the system's.
    """
    kind = kind_of_target(path)
    if kind is not None:
        raise NotOrdinary(path, kind)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        give_usual_mode(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def kind_of_target(path: Path) -> str | None:
    """What keeps a file from being written at `path`: the kind of what stands there; None for nothing."""
    kind = odd_kind(path)
    folder = system_folder(path)
    return kind or (None if folder is None else f"a place in {folder}")


def name_fault(path: Path) -> str | None:
    """Why no file can be written at `path` whatever stands there, as for a name that is too long; or None."""
    try:
        # As `replacing` names what it writes at first.
        os.lstat(path.with_name(f".{path.name}.{'x' * 8}"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def is_fault_of_place(error: BaseException) -> bool:
    """Whether an error says that a place cannot be used as it was meant: the user's to fix."""
    return isinstance(error, NotOrdinary) or (
        isinstance(error, OSError) and error.filename is not None and error.errno in _OF_THE_PLACE
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def give_usual_mode(path: Path) -> None:
    """Give a file or a folder with all that is in it the modes that the umask leaves.

    Temporary files are made for their owner alone, as safetensors makes all of its files. Folders keep what
    they have from the one above them, as a shared folder's setgid bit.
    """
    umask = _umask()
    for each in (path, *path.rglob("*")):
        if each.is_symlink():
            continue
        if each.is_dir():
            each.chmod((each.stat().st_mode & _SPECIAL) | (0o777 & ~umask))
        else:
            each.chmod(0o666 & ~umask)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


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
        raise RecipeError.of(f"{path} is there already", code="file-exists", hint=hint) from None
    except FileNotFoundError:
        raise RecipeError.of(
            f"{path}: the folder {path.parent} does not exist",
            code="folder-does-not-exist",
            hint="make it first",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError.of(
            f"{path} cannot be written", code="output-cannot-be-written", found=reason
        ) from None
