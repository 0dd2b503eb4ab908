"""The watch of a training process: whether it advances, and what it waits for if it does not.

It tells the command once a second, and the command decides that a run hangs: a process may be stuck in a way
in which no thread of its own can run.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_recipes.train.stopping import DATA, EVALUATION, LOADING, RESULTS, SAMPLING, SAVING, STEP, Stop

START_S = 1800.0
LIMITS_S: dict[str, float | None] = {
    LOADING: START_S,
    DATA: 600.0,
    STEP: None,
    SAVING: 3600.0,
    EVALUATION: None,
    SAMPLING: None,
    RESULTS: 3600.0,
}
"""How long nothing may advance in each phase; None where others wait in a collective meanwhile."""

_OF_COLLECTIVE = 5 / 6
"""Part of torch's own limit after which a run ends: torch names nothing when it ends one."""

STACKS = signal.SIGUSR2
"""Makes a process write the stacks of its threads, even where no Python code can run."""

TICK_S = 1.0
_BUSY = 0.05
_BY_WORK = (LOADING, SAVING, SAMPLING, RESULTS)
"""Phases that report little: there, computing, reading and writing are progress too."""


class Watch:
    """Tells what a process does, since when nothing has advanced, and how long that may take.

    timeout_s  the same for every phase, or None for LIMITS_S
    """

    def __init__(
        self, stop: Stop, *, tell: Callable[[dict[str, Any]], None], timeout_s: float | None
    ) -> None:
        self._stop, self._tell, self._timeout_s = stop, tell, timeout_s
        self._stacks: int | None = None

    def start(self) -> None:
        """Watch from now on, in a thread."""
        if hasattr(os, "memfd_create"):
            self._stacks = os.memfd_create("stacks")
            # It writes without the interpreter's lock, which a stuck thread may hold.
            faulthandler.register(STACKS, file=self._stacks, all_threads=True)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _limit_s(self, phase: str) -> float:
        if self._timeout_s is not None:
            return self._timeout_s
        limit_s = LIMITS_S[phase]
        return self._stop.collective_s * _OF_COLLECTIVE if limit_s is None else limit_s

    def _run(self) -> None:
        idle_s, still_s, before_s = 0.0, 0.0, time.monotonic()
        progress, work = self._stop.progress(), Work()
        while True:
            phase, waits_for = self._stop.doing, self._stop.waiting_for()
            status = {"kind": "watch", "phase": phase, "waits_for": waits_for, "idle_s": idle_s}
            status |= {"still_s": still_s, "limit_s": self._limit_s(phase), "stacks": self._stacks}
            self._tell(status)
            time.sleep(TICK_S)
            now_s = time.monotonic()
            # The time that this process was suspended does not count.
            elapsed_s, before_s = min(now_s - before_s, 2 * TICK_S), now_s
            has_advanced = progress != (progress := self._stop.progress())
            has_worked = work.goes_on(elapsed_s)
            by_work = phase in _BY_WORK
            idle_s = 0.0 if has_advanced or (by_work and has_worked) else idle_s + elapsed_s
            # Computing may be waiting for another process, as NCCL does it.
            still_s = 0.0 if has_advanced or (by_work and work.has_moved) else still_s + elapsed_s


class Work:
    """What this process computes, reads and writes.

    least_bytes  fewer are no progress: watching itself reads some
    """

    def __init__(self, least_bytes: int = 2**20) -> None:
        self._done, self._least_bytes = _work(), least_bytes
        self.has_moved = False
        """Whether it read or wrote something worth the name before the last call of `goes_on`."""

    def goes_on(self, elapsed_s: float) -> bool:
        """Whether it did something worth the name since the last call, `elapsed_s` ago."""
        before, self._done = self._done, _work()
        computed_s, moved = (now - then for now, then in zip(self._done, before, strict=True))
        self.has_moved = moved > self._least_bytes
        return computed_s > _BUSY * elapsed_s or self.has_moved


def _work() -> tuple[float, float]:
    """Seconds computed and bytes moved so far."""
    moved = 0
    try:
        for line in Path("/proc/self/io").read_text("ascii").splitlines():
            name, _, number = line.partition(":")
            # Pages of a mapped file count in `read_bytes` alone.
            if name in ("rchar", "wchar", "read_bytes"):
                moved += int(number)
    except OSError:
        return time.process_time(), 0.0
    return time.process_time(), float(moved)
