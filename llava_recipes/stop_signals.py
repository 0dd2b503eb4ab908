"""The signals that ask a run to save and stop, and how a process is started without losing one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
"""What schedulers, shells and limits send before they kill."""


def wanted_signals() -> tuple[signal.Signals, ...]:
    """The stop signals that count here: a SIGHUP that is ignored from the start, as by nohup, stays so."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(each for each in STOP_SIGNALS if each != signal.SIGHUP or not ignores_hangup)


OF_OTHERS = "another process"
"""Why a process stops that nobody asked: another one was asked, or something failed there."""


@contextmanager
def held_back() -> Iterator[None]:
    """Hold the stop signals back for the time of a block; a process that is started in it does so from birth.

    Such a process gets what came meanwhile once it calls `let_through`, and until then none can end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Receive the stop signals, those that were held back too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
