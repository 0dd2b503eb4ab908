"""What each process that reads samples reads now, so that a run that waits for one can name it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NUM_READERS = 129
_NUM_SHOWN = 4
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a disk", "Z": "dead"}


class _Reader(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_int), ("count", ctypes.c_uint), ("what", ctypes.c_char * 1000))


class Reading:
    """A note of each reader, in memory that the worker processes of data loaders share."""

    def __init__(self) -> None:
        self._readers = multiprocessing.RawArray(_Reader, _NUM_READERS)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Note that this process reads something for the time of a block."""
        self.note(what)
        try:
            yield
        finally:
            self.note("")

    def note(self, what: str) -> None:
        """Note what this process reads now; nothing when empty."""
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        reader = self._readers[min(0 if worker is None else worker.id + 1, _NUM_READERS - 1)]
        reader.pid, reader.what = os.getpid(), what.encode(errors="replace")[:999]
        reader.count += 1

    def num_notes(self) -> int:
        """Grows with each note of any reader."""
        return sum(reader.count for reader in self._readers)

    def describe(self) -> str:
        """What is being read and by whom, and which readers cannot run; empty when nothing is."""
        words = []
        for number, reader in enumerate(self._readers):
            what = reader.what.decode(errors="replace")
            state = None if number == 0 or not reader.pid else STATES.get(process_state(reader.pid) or "")
            if not (what or state):
                continue
            by = "" if number == 0 else f"data worker {number - 1} (process {reader.pid})"
            if state:
                by += f", which is {state}"
            words.append(" in ".join(filter(None, (what, by))))
        more = [f"and {len(words) - _NUM_SHOWN} more"] if len(words) > _NUM_SHOWN else []
        return "; ".join(words[:_NUM_SHOWN] + more)


def process_state(pid: int) -> str | None:
    """The kernel's letter for what a process does; None for one that does not exist, or without /proc."""
    return next(iter(process_facts(pid)), None)


def process_facts(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; empty as `process_state` is None."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
