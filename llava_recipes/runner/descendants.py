"""The processes that a process has started, and those that these have started. Empty outside Linux."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llava_recipes.data.reading import process_state

_PR_SET_CHILD_SUBREAPER = 36
_END_S = 5.0


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, those nearest to it first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children: list[int] = []
        for task in _tasks(waiting.pop(0)):
            with suppress(OSError, ValueError):
                children += map(int, (task / "children").read_text().split())
        found += children
        waiting += children
    return found


def kill_descendants(pid: int, *, except_for: frozenset[int] = frozenset()) -> None:
    """Kill everything below `pid`, not `pid` itself, nor those in `except_for` and what is below them."""
    deadline = time.monotonic() + _END_S
    # One that is just being killed may have started another.
    while victims := [each for each in _below(pid, except_for) if not _is_dead(each)]:
        for each in victims:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


@contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of every process below this one whose own parent ends, so that none gets lost."""
    _set_adopting(True)
    try:
        yield
    finally:
        _set_adopting(False)


def reap(pid: int) -> None:
    """Take note of the end of an adopted process, if that has come."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _below(pid: int, except_for: frozenset[int]) -> list[int]:
    spared = set(except_for)
    for each in except_for:
        spared |= set(descendants(each))
    return [each for each in descendants(pid) if each not in spared]


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _is_dead(pid: int) -> bool:
    return process_state(pid) in (None, "Z", "X")


def _set_adopting(is_on: bool) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(is_on), 0, 0, 0)
