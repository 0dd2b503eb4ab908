"""Run a program within a time limit, read its lines as they come, and leave no process of it running."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TO_END_S = 5.0
_LOOK_S = 0.1
"""How often to check whether the program has ended or has to stop."""


@dataclass(frozen=True)
class Ended:
    """How a program ended; `code` is None where it was killed, at its limit or when it had to stop."""

    code: int | None
    seconds: float
    errors: str
    """What it wrote to standard error."""


def run_bounded(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    limit_s: float,
    on_line: Callable[[str], None],
    has_to_stop: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a program; each line of its standard output is handed on at once, from a thread.

    When `limit_s` has passed, `has_to_stop` says so, or this process is interrupted, it is killed with all
    that it has started.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        assert child.stdout is not None
        reader = threading.Thread(target=_read, args=(child.stdout, on_line), daemon=True)
        reader.start()
        code: int | None = None
        try:
            while code is None and time.monotonic() - began_s < limit_s and not has_to_stop():
                # A code of None says that it was killed.
                with suppress(subprocess.TimeoutExpired):
                    code = child.wait(min(_LOOK_S, limit_s))
        finally:
            kill_tree(child.pid)
            child.wait()
            reader.join(_TO_END_S)
            if not reader.is_alive():
                child.stdout.close()
        errors.seek(0)
        return Ended(code, time.monotonic() - began_s, errors.read())


def _read(lines: IO[str], on_line: Callable[[str], None]) -> None:
    for line in lines:
        on_line(line)


def kill_tree(pid: int) -> None:
    """Kill a process, its session, and all processes below it, in whatever session they are.

    All are stopped first, so that none starts another one meanwhile; in the end none writes any more.
    """
    stopped: set[int] = set()
    while new := {pid, *_below(pid)} - stopped:
        for each in new:
            _send(each, signal.SIGSTOP)
        stopped |= new
    for each in stopped:
        _send(each, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    until_s = time.monotonic() + _TO_END_S
    while any(map(_runs, stopped)) and time.monotonic() < until_s:
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether a process exists that is more than an exit code."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _stat(pid: int) -> list[str]:
    """A process's state, its parent, and so on, as /proc shows them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _send(pid: int, number: signal.Signals) -> None:
    # It may have ended by itself.
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _below(pid: int) -> set[int]:
    """Processes that descend from one, as /proc shows them now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # One that ends meanwhile has no file any more.
            with suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found
