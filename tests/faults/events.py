"""The events in which a process changes files inside a folder; imported by the processes of a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1}
"""The audited events that change a folder, and which of their arguments names what is changed."""
_inside = threading.local()


def listen(folder: str, meet: Callable[[str, str], None]) -> None:
    """Call `meet` with an event and a path before each change inside `folder`, from now on.

    Events are `open` for writing, `fsync` and those of _CHANGES. What `meet` itself changes is none.
    """

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                note(event, path)
        elif event in _CHANGES:
            note(event, arguments[_CHANGES[event]])

    def note(event: str, changed: object) -> None:
        if getattr(_inside, "busy", False) or not isinstance(changed, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(changed))
        if path == folder or path.startswith(f"{folder}/"):
            with unheard():
                meet(event, path)

    flush = os.fsync

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        note("fsync", os.readlink(f"/proc/self/fd/{number}"))
        flush(descriptor)

    sys.addaudithook(hear)
    os.fsync = fsync  # type: ignore[assignment]  # the same, with a word before it


@contextmanager
def unheard() -> Iterator[None]:
    """What this thread does in the block is no event."""
    was_busy, _inside.busy = getattr(_inside, "busy", False), True
    try:
        yield
    finally:
        _inside.busy = was_busy
