"""Read ordinary files only, and write files whole or not at all.

Reading a named pipe, a terminal or /dev/zero may never end, and files in /proc contain secrets.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from llava_recipes.errors import RecipeError

MAX_SETTINGS_BYTES = 2**26
"""Largest file of settings to read; those of models have some megabytes at most."""

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""The names that mkstemp gives in `replacing`."""
_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX

_SYSTEM = ("/proc", "/sys", "/dev")
_MEMORY = "/dev/shm"
"""Inside /dev, but with ordinary files."""
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
)  # fmt: skip
_NOT_TAKEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_OS_ERROR = re.compile(r"os error (\d+)")
_TORCH_WRITER = re.compile(r"PytorchStreamWriter failed|file write failed|inline_container.*unexpected pos")
_NEARLY_FULL = 2**20
"""Bytes; a file that needs more failed for lack of space where fewer are free."""


class NotOrdinary(OSError):
    """A path leads to something other than an ordinary file; `strerror` says to what."""

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        super().__init__(errno.EINVAL, f"{kind}, not an ordinary file", os.fspath(path))
        self.kind = kind


def open_ordinary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an ordinary file for reading, directly or through links; never waits for anything else.

    Raises NotOrdinary for pipes, sockets, devices and files of the system, OSError or ValueError as `open`.
    """
    # Checked before, since opening a device may have an effect, and after, since the path may change.
    _refuse(path, os.stat(path))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _refuse(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_settings(path: str | os.PathLike[str]) -> str:
    """The text of a file of settings. Raises as `open_ordinary`, and OSError if it is too large."""
    with open_ordinary(path) as file:
        data = file.read(MAX_SETTINGS_BYTES + 1)
    if len(data) > MAX_SETTINGS_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_SETTINGS_BYTES:,} bytes", os.fspath(path))
    return data.decode("utf-8")


def odd_kind(path: str | os.PathLike[str]) -> str | None:
    """What a path leads to, unless that is a folder, an ordinary file or nothing: then None.

    Ask it before a library opens the path itself.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return _kind(path, found)


def wait_for(path: str | os.PathLike[str]) -> None:
    """Read the beginning of a file before a library does, and wait for its disk here.

    Many libraries keep the interpreter's lock while they read: no thread could see that the disk hangs.
    """
    with suppress(OSError, ValueError), open_ordinary(path) as file:
        file.read(1)


def system_folder(path: str | os.PathLike[str]) -> str | None:
    """The system's folder that a path leads into, or None. The path need not exist."""
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
    """The system's file systems by device number, since they may be mounted elsewhere too."""
    return {os.stat(folder).st_dev: folder for folder in _SYSTEM[:2] if os.path.ismount(folder)}


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write a new text file; with `force`, replace an old one. Raises RecipeError if it cannot."""
    try:
        if force:
            write_text(path, text)
            return
        # The file is created first, so that no other can appear between the check and the writing.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            write_text(path, text)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        message, code = f"{path} already exists", "file-exists"
        hint = "choose another file with `-o FILE`, or add `--force` to replace it"
        raise RecipeError.of(message, code=code, hint=hint) from None
    except FileNotFoundError:
        message, code = f"{path}: the folder {path.parent} does not exist", "folder-does-not-exist"
        raise RecipeError.of(message, code=code, hint="create it first") from None
    except (OSError, ValueError) as error:
        message, reason = f"{path} cannot be written", getattr(error, "strerror", None) or str(error)
        raise RecipeError.of(message, code="output-cannot-be-written", found=reason) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` to write to; when the block ends, it is flushed and renamed to `path`.

    When the block raises, the temporary file is removed and `path` stays as it was. Raises NotOrdinary if a
    pipe or a device is at `path`, or the folder is one of the system's.
    """
    kind = kind_of_target(path)
    if kind is not None:
        raise NotOrdinary(path, kind)
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            give_usual_mode(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in what the block raises when the disk takes nothing more.

    Python leaves the name out of errors that come while it writes. Those of torch and safetensors, which are
    no OSError, become one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or error.errno in _NOT_TAKEN):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    except Exception as error:
        number = errno_of_library(error, path.parent)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def errno_of_library(error: BaseException, folder: Path) -> int | None:
    """The system's number for what torch or safetensors could not write to a folder, or None."""
    text = str(error)
    if type(error).__name__ == "SafetensorError" and (found := _OS_ERROR.search(text)) is not None:
        return int(found.group(1))
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(text):
        # torch says only that writing failed.
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            return errno.EIO
        return errno.ENOSPC if free < _NEARLY_FULL else errno.EIO
    return None


def name_of_temporary(name: str) -> str | None:
    """The name of the file that a temporary one of `replacing` would have become, or None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else match.group(1)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems have no fsync for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def give_usual_mode(path: Path) -> None:
    """Give a file, or a folder and everything in it, the mode that the umask allows.

    Temporary files, like all files of safetensors, are created for their owner only. Folders keep special
    bits that they inherit, such as the setgid bit of a shared folder.
    """
    umask = os.umask(0)
    os.umask(umask)
    for each in (path, *path.rglob("*")):
        if each.is_symlink():
            continue
        if each.is_dir():
            each.chmod((each.stat().st_mode & _SPECIAL) | (0o777 & ~umask))
        else:
            each.chmod(0o666 & ~umask)


def kind_of_target(path: Path) -> str | None:
    """What prevents writing a file at `path`: the kind of what is there; None if nothing does."""
    kind = odd_kind(path)
    folder = system_folder(path)
    return kind or (None if folder is None else f"a place in {folder}")


def name_fault(path: Path) -> str | None:
    """Why no file can ever be written at `path`, for example because its name is too long; or None."""
    try:
        # A name as long as that of the temporary file in `replacing`.
        os.lstat(path.with_name(f".{path.name}.{'x' * 8}"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def is_fault_of_place(error: BaseException) -> bool:
    """Whether an error says that a path cannot be used, which the user can fix."""
    return isinstance(error, NotOrdinary) or (
        isinstance(error, OSError) and error.filename is not None and error.errno in _PATH_ERRORS
    )


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` expanded; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path behind all links; if links form a circle, a path that cannot be opened either."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        # A zero byte, which no path contains.
        return Path(path)
