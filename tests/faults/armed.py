"""Imported by every process of a run that is to be killed: counts file events, and ends the run at one.

An event is a file opened for writing, flushed, renamed or removed, or a folder made or removed, inside the
run's own folder. Environment variables say which folder, where events are counted, and which one is the last.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.faults.events import listen, unheard

FOLDER, GROUND, KILL_AT, TORN = "FAULTS_FOLDER", "FAULTS_GROUND", "FAULTS_KILL_AT", "FAULTS_TORN"
EVENTS_FILE, PIDS_FILE = "events", "pids"


def arm() -> None:
    """Count this process's events from now on, and those of the processes that it forks."""
    _note_process()
    os.register_at_fork(after_in_child=_note_process)
    listen(os.environ[FOLDER], _meet)


def _note_process() -> None:
    with unheard():
        _append(PIDS_FILE, f"{os.getpid()}\n")


def _meet(event: str, path: str) -> None:
    number = _append(EVENTS_FILE, f"{event} {os.path.relpath(path, os.environ[FOLDER])}\n")
    if number == int(os.environ[KILL_AT]):
        if os.environ[TORN] == "1":
            _tear(event, path)
        _kill_all()


def _tear(event: str, path: str) -> None:
    """Leave half of what the event was about to finish, as a loss of power may."""
    with suppress(OSError):
        if event == "fsync" and os.path.isfile(path):
            os.truncate(path, _num_kept(path))
        elif event == "open" and os.path.isfile(path):
            with open(path, "ab") as file:
                file.write(b'{"st')
        elif event == "open" and os.path.isdir(os.path.dirname(path)):
            Path(path).write_bytes(b'{"st')


def _num_kept(path: str) -> int:
    """Bytes that a loss of power leaves: half of a file, and all whole lines of a log, flushed before."""
    text = Path(path).read_bytes()
    if not path.endswith(".jsonl"):
        return len(text) // 2
    last = text.rstrip(b"\n").rpartition(b"\n")[2]
    return len(text) - 1 - len(last) // 2


def _append(name: str, line: str) -> int:
    """Add a line to a file of the ground; the line's number, from 0."""
    with open(Path(os.environ[GROUND]) / name, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = sum(1 for _ in file)
        file.write(line)
        file.flush()
    return number


def _kill_all() -> None:
    """Kill every process of the run, this one last."""
    own = os.getpid()
    pids = {int(line) for line in (Path(os.environ[GROUND]) / PIDS_FILE).read_text().split()}
    for pid in pids - {own}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.kill(own, signal.SIGKILL)


if KILL_AT in os.environ:
    arm()
