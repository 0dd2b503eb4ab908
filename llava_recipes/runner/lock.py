"""One run at a time in a folder: the file `.lock` says which run has it.

The launcher and each of its training processes keep the file open with a shared `flock`, which the kernel
releases when the last of them ends, however it ends. A new run needs the file exclusively for a moment: it
gets that only when nobody of another run is left. Where the file system cannot lock, the file `.lock-owner`
takes its place: who creates it has the folder, and another run removes it only when its owner is provably
gone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from llava_recipes.data.reading import process_facts
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.masking import mask_command
from llava_recipes.screen import say

LOCK, OWNER = ".lock", ".lock-owner"

WAIT_S = 60.0
"""How long a new run waits for the training processes of one whose launcher was killed."""
_SETTLE_S = 10.0
"""How long another process may be about to take or release the lock."""
_SAY_AFTER_S = 1.0
_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LONGEST_RECORD = 2**16


@dataclass(frozen=True)
class Owner:
    """The process that started a run, and where and since when it runs."""

    run: str
    """The same on every node of a run, and of no other run."""
    host: str
    pid: int
    started: str | None
    """When the process started, in ticks of the kernel; with `boot`, no other process has both."""
    boot: str | None
    namespace: str | None
    since: str
    command: str

    @classmethod
    def of_this_process(cls, run: str) -> Owner:
        return cls(
            run=run,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            boot=_boot(),
            namespace=_namespace(),
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            command=shlex.join(mask_command(["llava-recipe", *sys.argv[1:]])),
        )

    @classmethod
    def read(cls, handle: int) -> Owner | None:
        """The owner that an open lock file names; None where it names none."""
        try:
            return cls(**json.loads(os.pread(handle, _LONGEST_RECORD, 0)))
        except (ValueError, TypeError):
            return None

    def is_here(self) -> bool:
        """Whether this process can see the owner's process."""
        here = (socket.gethostname(), _boot(), _namespace())
        return (self.host, self.boot, self.namespace) == here

    def is_gone(self) -> bool:
        """Whether the owner's process has certainly ended."""
        if not self.is_here():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            # Of another user, whose processes /proc may hide.
            return False
        return self.started is not None and _start_of(self.pid) != self.started


class Held:
    """A folder's lock, held by this process until `close` or its end."""

    def __init__(self, file: Path, handle: int, run: str, *, created: bool, by_kernel: bool) -> None:
        self._file, self._handle = file, handle
        self._created, self._by_kernel = created, by_kernel
        self.run = run
        self.made_folder = False
        """Whether the folder was created for the lock."""

    def close(self) -> None:
        """Release the lock; the file and the folder disappear if nobody else needs them."""
        if self._handle < 0:
            return
        # A training process or another node may still hold it: it stays theirs.
        if _flock(self._handle, fcntl.LOCK_EX) if self._by_kernel else self._created:
            with suppress(OSError):
                if _is_at(self._handle, self._file):
                    self._file.unlink()
                if self.made_folder:
                    # It goes if nothing was written to it.
                    self._file.parent.rmdir()
        os.close(self._handle)
        self._handle = -1


def take(folder: Path, *, run: str | None = None) -> Held:
    """Take a folder for this run; waits a while for training processes of a run whose launcher was killed.

    run  the name of a run of several nodes, which take the folder together

    Raises RecipeError, with the owner's name, when another run has the folder.
    """
    mine = Owner.of_this_process(run or secrets.token_hex(8))
    started_s, has_said, made_folder = time.monotonic(), False, False
    while True:
        try:
            made_folder |= not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            found = _attempt(folder, mine)
        except FileNotFoundError:
            # Another run, which made the folder for its lock, has just removed it.
            found = None
        except OSError as error:
            raise RecipeError.of(
                "output_dir cannot be written to",
                code="output-cannot-be-written",
                found=f"{error.filename or folder}: {error.strerror}",
                hint="remove the cause, or choose another folder",
            ) from None
        if isinstance(found, Held):
            found.made_folder = made_folder
            return found
        waited_s = time.monotonic() - started_s
        if found is None:
            # Others that start in the same moment must not all see each other.
            if waited_s > _SETTLE_S:
                raise RecipeError(_taken(folder, None))
            time.sleep(0.01 + 0.04 * secrets.randbelow(100) / 100)
            continue
        if not found.is_gone() or waited_s > WAIT_S:
            raise RecipeError(_taken(folder, found))
        # Others that only look at the file may have it open for a moment.
        if waited_s > _SAY_AFTER_S and not has_said:
            say(f"{folder}: waits for the training processes of a run whose launcher was killed")
            has_said = True
        time.sleep(0.2)


def join(folder: Path, run: str) -> int:
    """Hold a run's lock in one of its training processes too, until the process ends.

    Raises RecipeError when the launcher is gone already, or another run has the folder.
    """
    for name in (LOCK, OWNER):
        with suppress(FileNotFoundError):
            handle = _open(folder / name, create=False)
            shared = name == OWNER or _try(handle, fcntl.LOCK_SH)
            owner = Owner.read(handle) if shared else None
            if owner is not None and owner.run == run and not owner.is_gone():
                return handle
            os.close(handle)
    raise RecipeError.of(
        "the run lost its folder",
        code="output-dir-lost",
        found=f"{folder / LOCK} is of another run, or its launcher was killed",
        hint="run it again with `--resume`",
    )


def _attempt(folder: Path, mine: Owner) -> Held | Owner | None:
    """The lock, or who has it; None while others are taking or releasing it."""
    file = folder / LOCK
    handle = _open(file, create=True)
    keep = False
    try:
        if _flock(handle, fcntl.LOCK_EX):
            if not _is_at(handle, file):
                return None
            _write(handle, mine)
            # Between the two locks another process may get in: then it has written its own name.
            if not _flock(handle, fcntl.LOCK_SH) or Owner.read(handle) != mine:
                return None
            keep = True
            return Held(file, handle, mine.run, created=True, by_kernel=True)
        if not _flock(handle, fcntl.LOCK_SH):
            return None
        if not _is_at(handle, file):
            return None
        owner = Owner.read(handle)
        if owner is not None and owner.run == mine.run and not owner.is_gone():
            keep = True
            return Held(file, handle, owner.run, created=False, by_kernel=True)
        return owner
    except _CannotLock:
        file.unlink(missing_ok=True)
        return _attempt_by_file(folder / OWNER, mine)
    finally:
        if not keep:
            os.close(handle)


def _attempt_by_file(file: Path, mine: Owner) -> Held | Owner | None:
    """`_attempt` where the file system cannot lock."""
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        pass
    else:
        _write(handle, mine)
        return Held(file, handle, mine.run, created=True, by_kernel=False)
    try:
        handle = _open(file, create=False)
    except FileNotFoundError:
        return None
    owner = Owner.read(handle)
    if owner is not None and owner.run == mine.run and not owner.is_gone():
        return Held(file, handle, owner.run, created=False, by_kernel=False)
    os.close(handle)
    if owner is None or not owner.is_gone() or holders_of(file):
        return owner
    # Whoever can prove that the owner is gone is on its machine, so a lock of the machine is enough.
    with _alone_on_this_machine(file) as is_alone:
        if is_alone and _names(file, owner):
            file.unlink()
    return None


def holders_of(file: Path) -> list[int]:
    """The processes of this machine that have a file open, as far as this user may see them."""
    wanted, found = os.path.realpath(file), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Links are only read: a file on a dead mount, followed, would stop this process too.
            links = {os.readlink(link) for link in (process / "fd").iterdir()}
            if wanted in links and int(process.name) != os.getpid():
                found.append(int(process.name))
    return sorted(found)


def _taken(folder: Path, owner: Owner | None) -> Problem:
    file = folder / (OWNER if (folder / OWNER).exists() else LOCK)
    message, code = "another run is using output_dir", "output-dir-in-use"
    if owner is None:
        hint = f"try again when it has ended; if there is no such run, remove {file}"
        return Problem(message, code=code, found=f"{file} is locked, and names no owner", hint=hint)
    if owner.is_gone():
        pids = " ".join(map(str, holders_of(file))) or "unknown"
        message = "training processes of another run still use output_dir"
        found = f"{folder}: the launcher was killed, its processes are {pids}"
        hint = f"they save and stop by themselves: try again, or end them with `kill -9 {pids}`"
        return Problem(message, code=code, found=found, hint=hint)
    found = f"{folder} is used by process {owner.pid} on {owner.host} since {owner.since}: {owner.command}"
    hint = "wait until it has ended, stop it, or choose another folder"
    if not owner.is_here():
        hint += f"; if it is certain that it runs no more, remove {file}"
    return Problem(message, code=code, found=found, hint=hint)


class _CannotLock(Exception):
    """The file system has no locks."""


def _flock(handle: int, kind: int) -> bool:
    """Whether the lock was given, at once. Raises _CannotLock."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _CANNOT_LOCK:
            raise _CannotLock from None
        raise
    return True


def _try(handle: int, kind: int) -> bool:
    try:
        return _flock(handle, kind)
    except _CannotLock:
        return False


def _open(file: Path, *, create: bool) -> int:
    create_flag = os.O_CREAT if create else 0
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | create_flag
    handle = os.open(file, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not an ordinary file", os.fspath(file))
    return handle


def _write(handle: int, owner: Owner) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(asdict(owner), indent=1).encode() + b"\n", 0)


def _is_at(handle: int, file: Path) -> bool:
    """Whether an open file is still the one at its path: another run may have removed it meanwhile."""
    try:
        found = os.lstat(file)
    except FileNotFoundError:
        return False
    opened = os.fstat(handle)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _names(file: Path, owner: Owner) -> bool:
    try:
        handle = _open(file, create=False)
    except FileNotFoundError:
        return False
    try:
        return Owner.read(handle) == owner
    finally:
        os.close(handle)


@contextmanager
def _alone_on_this_machine(file: Path) -> Iterator[bool]:
    """Whether no other process of this machine is in such a block for the same file."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()
    with socket.socket(socket.AF_UNIX) as guard:
        try:
            # An abstract name: it is in no folder, and the kernel frees it.
            guard.bind(f"\0llava-recipe-{name}")
        except OSError:
            yield False
            return
        yield True


def _start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None for one that has ended, or without /proc."""
    facts = process_facts(pid)
    # A zombie does nothing any more.
    return None if not facts or facts[0] in "ZX" else facts[19]


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """Where process numbers count: containers of one machine may each have a process 1."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
